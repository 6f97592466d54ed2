"""The engines that decode evaluation requests, vLLM and transformers. Both draw each completion from its own seed.

A completion depends on the engine, the model and the seed only: not on the other requests or the number of processes. The two
engines draw different completions from one seed.
"""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AutoTokenizer

from rlvr_sweeps import patches
from rlvr_sweeps.assets.locations import model_location
from rlvr_sweeps.assets.problems import Problem
from rlvr_sweeps.assets.tokenizer_check import refuse_other_tokenizer
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained, sampling_precision, sampling_weights
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.planning.memory import shared_engine
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training.models import (
    PublishedWeights,
    load_model,
    load_tokenizer,
    load_weights,
    own_device,
    own_gpu_gib,
    published_weights,
)
from rlvr_sweeps.training.seeded_sampling import sample
from rlvr_sweeps.training.weight_rounding import Rounding, rounding_of


@dataclass(frozen=True)
class Request:
    """One completion to decode."""

    benchmark: str
    problem: Problem
    index: int  # sample j of k
    prompt: tuple[int, ...]
    seed: int


Completion = tuple[Request, str, int, bool]  # request, text, tokens, truncated


class Engine(Protocol):
    name: str

    def decode(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
        """Yield the completions in the order in which they finish, in batches that the caller writes to disk."""


def engine_name(cfg: Resolved) -> str:
    """Return the engine's name: for `auto`, vllm where it is installed and a GPU is visible, else transformers."""
    name = str(cfg["evaluation"]["engine"])
    if name == "auto":
        return "vllm" if importlib.util.find_spec("vllm") and torch.cuda.is_available() else "transformers"
    if name == "vllm" and not importlib.util.find_spec("vllm"):
        raise Refused("evaluation.engine=vllm, but vLLM is not installed here. Use evaluation.engine=auto, or install it.")
    return name


def tokenizer_of(run: Run, cfg: Resolved) -> Any:
    """Return the tokenizer of the trained model, or of the base for peft=none.

    Raises Refused where transformers does not load the tokenizer that was saved with the model.
    """
    if not is_trained(cfg):
        return load_tokenizer(cfg)
    tokenizer = AutoTokenizer.from_pretrained(run.merged_path)
    refuse_other_tokenizer(tokenizer, run.merged_path / "tokenizer.json", str(run.merged_path))
    return tokenizer


def make_engine(run: Run, cfg: Resolved, tokenizer: Any, longest_prompt: int) -> Engine:
    """Return the configured engine with the run's model loaded; `longest_prompt` is in tokens."""
    if engine_name(cfg) == "vllm":
        return VllmEngine(run, cfg, tokenizer, longest_prompt)
    return TransformersEngine(run, cfg, tokenizer)


class TransformersEngine:
    """transformers' generate, in batches of prompts of similar length."""

    name = "transformers"

    def __init__(self, run: Run, cfg: Resolved, tokenizer: Any) -> None:
        model = load_weights(str(run.merged_path), own_device()) if is_trained(cfg) else load_model(cfg)[0]
        self.model = model.eval()
        if rounding := evaluation_rounding(cfg):
            for name, parameter in self.model.named_parameters():
                parameter.data = rounding(name, parameter.data)
        self.tokenizer, self.cfg, self.is_bf16 = tokenizer, cfg, sampling_precision(cfg, "evaluation") == "bfloat16"
        self.ends = end_ids(self.model.generation_config.eos_token_id, tokenizer)

    def decode(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
        settings = self.cfg["evaluation"]
        for start in range(0, len(requests), settings["batch_size"]):
            batch = requests[start : start + settings["batch_size"]]
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.is_bf16):
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
    """vLLM's engine in this process; it receives all requests at once and returns completions as they finish."""

    name = "vllm"

    def __init__(self, run: Run, cfg: Resolved, tokenizer: Any, longest_prompt: int) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM
        from vllm.platforms import current_platform

        settings = cfg["evaluation"]
        path, revision = (str(run.merged_path), {}) if is_trained(cfg) else model_location(cfg)
        derived = {
            "tokenizer_revision": revision.get("revision"),
            "dtype": sampling_precision(cfg, "evaluation"),
            "max_model_len": longest_prompt + settings["max_tokens"],
            "generation_config": "vllm",  # a published generation config would act on top of the configured decoding
            "seed": 0,
        }
        rounding = evaluation_rounding(cfg)
        if rounding and settings["vllm"].get("tensor_parallel_size", 1) > 1:
            raise Refused(
                "evaluation.vllm.tensor_parallel_size with evaluation.weights="
                f"{settings['weights']} is not possible: the weights are rounded in this process. Leave tensor_parallel_size "
                "out; several GPUs share an evaluation by cluster.evaluate.gpus_per_node."
            )
        if rounding and current_platform.is_cpu():
            patches.keep_cpu_weights_unpacked()
        engine = derived | shared_engine(cfg, settings["vllm"], own_gpu_gib(), "evaluation")
        self.engine = LLM(model=path, **revision, **engine)
        if rounding:
            weights = PublishedWeights(run.merged_path) if is_trained(cfg) else published_weights(cfg)
            patches.vllm_module(self.engine).load_weights((name, rounding(name, weights[name])) for name in weights.file_of)
        self.tokenizer, self.cfg = tokenizer, cfg
        self.ends = end_ids(self.engine.llm_engine.model_config.hf_config.eos_token_id, tokenizer)

    def decode(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
        from vllm import SamplingParams, TokensPrompt

        settings, engine = self.cfg["evaluation"], self.engine.llm_engine
        for number, request in enumerate(requests):
            parameters = SamplingParams(
                temperature=settings["temperature"], top_p=settings["top_p"], max_tokens=settings["max_tokens"],
                seed=request.seed, stop_token_ids=self.ends, skip_special_tokens=True,
            )  # fmt: skip
            engine.add_request(str(number), TokensPrompt(prompt_token_ids=list(request.prompt)), parameters)
        while engine.has_unfinished_requests():
            finished = [output for output in engine.step() if output.finished]
            if finished:
                yield [
                    (requests[int(output.request_id)], output.outputs[0].text, len(output.outputs[0].token_ids),
                     output.outputs[0].finish_reason == "length")
                    for output in finished
                ]  # fmt: skip


def evaluation_rounding(cfg: Resolved) -> Rounding | None:
    """Return the rounding of the evaluated weights, `evaluation.weights`; None for float32."""
    return rounding_of(sampling_weights(cfg, "evaluation"), cfg["evaluation"]["seed"], "evaluation", cfg["seed"])


def end_ids(eos_token_id: int | list[int] | None, tokenizer: Any) -> list[int]:
    """Return the token ids that end a completion: the model's and the tokenizer's, sorted."""
    ids = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
    return sorted({*(token for token in ids if token is not None), tokenizer.eos_token_id})
