"""What decodes evaluation requests: vLLM, or transformers. Both draw each completion from its own seed.

A completion depends on the engine, the model and its seed: not on what is decoded beside it, or on how many processes share
the work. The two engines draw different completions from one seed.
"""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlvr_sweeps.assets.locations import place_of
from rlvr_sweeps.assets.problems import Problem
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training.models import load_model, load_tokenizer
from rlvr_sweeps.training.seeded_sampling import sample


@dataclass(frozen=True)
class Request:
    """One completion to make."""

    benchmark: str
    problem: Problem
    index: int  # sample j of k
    prompt: tuple[int, ...]
    seed: int


Completion = tuple[Request, str, int, bool]  # request, text, tokens, truncated


class Engine(Protocol):
    name: str

    def decode(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
        """Completions in the order in which they are finished, in portions worth writing down."""


def engine_name(cfg: Resolved) -> str:
    """`auto` is vLLM where it is installed and there is a GPU, transformers otherwise."""
    asked = str(cfg["evaluation"]["engine"])
    if asked == "auto":
        return "vllm" if importlib.util.find_spec("vllm") and torch.cuda.is_available() else "transformers"
    if asked == "vllm" and not importlib.util.find_spec("vllm"):
        raise Refused("evaluation.engine=vllm, but vLLM is not installed here. Use evaluation.engine=auto, or install it.")
    return asked


def tokenizer_of(run: Run, cfg: Resolved) -> Any:
    """The trained run's own, the base's for peft=none."""
    return AutoTokenizer.from_pretrained(run.merged_path) if is_trained(cfg) else load_tokenizer(cfg)


def make_engine(run: Run, cfg: Resolved, tokenizer: Any, longest_prompt: int) -> Engine:
    if engine_name(cfg) == "vllm":
        return VllmEngine(run, cfg, tokenizer, longest_prompt)
    return TransformersEngine(run, cfg, tokenizer)


class TransformersEngine:
    """transformers' generate, in batches of prompts of similar length."""

    name = "transformers"

    def __init__(self, run: Run, cfg: Resolved, tokenizer: Any) -> None:
        model = (
            AutoModelForCausalLM.from_pretrained(run.merged_path, dtype=torch.float32)
            if is_trained(cfg)
            else load_model(cfg)[0]
        )
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.tokenizer, self.cfg = tokenizer, cfg
        self.ends = end_ids(self.model.generation_config.eos_token_id, tokenizer)

    def decode(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
        settings = self.cfg["evaluation"]
        for start in range(0, len(requests), settings["batch_size"]):
            batch = requests[start : start + settings["batch_size"]]
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.cfg["model"]["autocast_bf16"]):
                completions = sample(
                    self.model, [request.prompt for request in batch], [request.seed for request in batch],
                    max_tokens=settings["max_tokens"], temperature=settings["temperature"], top_p=settings["top_p"],
                    pad_id=self.tokenizer.pad_token_id, end_ids=self.ends,
                )  # fmt: skip
            texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
            yield [
                (request, text, len(ids), ids[-1] not in self.ends)
                for request, ids, text in zip(batch, completions, texts, strict=True)
            ]


class VllmEngine:
    """vLLM's engine in this process, fed with every request at once; completions come back one by one."""

    name = "vllm"

    def __init__(self, run: Run, cfg: Resolved, tokenizer: Any, longest_prompt: int) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM

        source, settings = cfg["model"], cfg["evaluation"]
        place, revision = (str(run.merged_path), {}) if is_trained(cfg) else place_of(cfg)
        stated = {
            "tokenizer_revision": revision.get("revision"),
            "dtype": "bfloat16" if source["autocast_bf16"] else "float32",
            "max_model_len": longest_prompt + settings["max_tokens"],
            "generation_config": "vllm",  # a hub model's own decoding would act on top of the one that is configured
            "seed": 0,
        }
        self.engine = LLM(model=place, **revision, **(stated | settings["vllm"]))
        self.tokenizer, self.cfg = tokenizer, cfg
        self.ends = end_ids(self.engine.llm_engine.model_config.hf_config.eos_token_id, tokenizer)

    def decode(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
        from vllm import SamplingParams, TokensPrompt

        settings, engine = self.cfg["evaluation"], self.engine.llm_engine
        for number, request in enumerate(requests):
            drawing = SamplingParams(
                temperature=settings["temperature"], top_p=settings["top_p"], max_tokens=settings["max_tokens"],
                seed=request.seed, stop_token_ids=self.ends, skip_special_tokens=True,
            )  # fmt: skip
            engine.add_request(str(number), TokensPrompt(prompt_token_ids=list(request.prompt)), drawing)
        while engine.has_unfinished_requests():
            finished = [output for output in engine.step() if output.finished]
            if finished:
                yield [
                    (requests[int(output.request_id)], output.outputs[0].text, len(output.outputs[0].token_ids),
                     output.outputs[0].finish_reason == "length")
                    for output in finished
                ]  # fmt: skip


def end_ids(stated: int | list[int] | None, tokenizer: Any) -> list[int]:
    ids = stated if isinstance(stated, list) else [stated]
    return sorted({*(token for token in ids if token is not None), tokenizer.eos_token_id})
