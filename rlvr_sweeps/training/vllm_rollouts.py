"""Rollouts by vLLM in the trainer's process: TRL's colocate mode, with an exact sync and a seed per completion."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.elastic.utils.distributed import get_free_port
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.utils import ensure_master_addr_port
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform

from rlvr_sweeps import patches
from rlvr_sweeps.assets.locations import model_location
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import sampler_slots, sampling_precision, sampling_weights
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.planning.memory import shared_engine
from rlvr_sweeps.training.methods.merging import plain_name, policy_weights
from rlvr_sweeps.training.models import own_gpu_gib
from rlvr_sweeps.training.random_state import kept_random_state
from rlvr_sweeps.training.weight_rounding import Rounding

CHECKED_COMPLETIONS, CHECKED_TOKENS = 4, 32  # sampled at each comparison of the sampler with the trainer


class VllmRollouts(VLLMGeneration):
    """One engine per process, beside the trainer on its GPU.

    TRL merges adapters in place and subtracts them after the sync, which rounds a bfloat16 base at every step, and samples a
    batch from one seed. Here weights are merged in copies (`rollout.sync=merged`), or vLLM loads the adapter beside the base's
    weights (`rollout.sync=adapter`).
    """

    def __init__(self, cfg: Resolved, **trl: Any) -> None:
        self.cfg = cfg
        self.adapter: LoRARequest | None = None
        self.rounding: Rounding | None = None  # of the weights in `_iter_named_params`; the trainer sets it before each sync
        super().__init__(**trl)

    def _init_vllm(self) -> None:
        accelerator = self.accelerator
        # vLLM's external launcher reads the ranks from torchrun's variables.
        os.environ["RANK"] = str(accelerator.process_index)
        os.environ["LOCAL_RANK"] = str(accelerator.local_process_index)
        os.environ["WORLD_SIZE"] = str(accelerator.num_processes)
        if "MASTER_PORT" not in os.environ:  # TRL would choose 29500 for every run that starts at this moment
            os.environ["MASTER_PORT"] = str(get_free_port())  # type: ignore[no-untyped-call]
        ensure_master_addr_port()
        if self.enable_sleep_mode and not current_platform.is_sleep_mode_available():
            raise Refused(
                "rollout.sleep=true needs a GPU: vLLM releases GPU memory by mapping it anew, and this build of it cannot. Use "
                "rollout.sleep=false."
            )
        if current_platform.is_cpu():
            patches.keep_cpu_weights_unpacked()
        elif not torch.cuda.is_available():
            raise Refused("rollout=vllm needs a GPU, and no GPU is visible. Use rollout=hf, or a node with GPUs.")
        try:
            # vLLM's worker sets all generators to the engine's seed, so that every training seed and every rank would draw the
            # same dropout masks.
            with kept_random_state():
                self.llm = LLM(**engine_settings(self.cfg))
        except ValueError as error:
            raise Refused(
                f"vLLM does not start with these settings: {str(error).splitlines()[0]} Change rollout.vllm, or use rollout=hf."
            ) from error
        self._llm_weights_sleeping = False
        self.fall_asleep()
        accelerator.wait_for_everyone()  # DeepSpeed hangs where one process is still loading

    @property
    def engine_model(self) -> torch.nn.Module:
        """vLLM's torch module, with its fused layers."""
        return patches.vllm_module(self.llm)

    def engine_facts(self) -> dict[str, Any]:
        """Return the settings that vLLM resolved, as plain values of JSON, for train.json."""
        config = self.llm.llm_engine.vllm_config
        model, cache, scheduler, compilation = (
            config.model_config, config.cache_config, config.scheduler_config, config.compilation_config,
        )  # fmt: skip
        layers: list[Any] = [layer for layer in self.engine_model.modules() if hasattr(layer, "get_attn_backend")]
        return {
            "model_runner": "V2" if config.use_v2_model_runner else "V1",
            "model_runner_class": class_name(patches.vllm_model_runner(self.llm)),
            "model_class": class_name(self.engine_model),
            "attention_backends": sorted({layer.get_attn_backend().get_name() for layer in layers}),
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantization": model.quantization,
            "max_model_len": model.max_model_len,
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
            "chunked_prefill": scheduler.enable_chunked_prefill,
            "async_scheduling": scheduler.async_scheduling,
            "prefix_caching": cache.enable_prefix_caching,
            "kv_cache_dtype": cache.cache_dtype,
            "kv_cache_blocks": cache.num_gpu_blocks,
            "kv_cache_block_tokens": cache.block_size,
            "enforce_eager": model.enforce_eager,
            "compilation_mode": compilation.mode.name,
            "cudagraph_mode": compilation.cudagraph_mode.name,
            "cudagraph_capture_sizes": list(compilation.cudagraph_capture_sizes or []),
            "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
            "logprobs_mode": model.logprobs_mode,
            "sync": self.cfg["rollout"]["sync"],
            "weights": sampling_weights(self.cfg, "rollout"),
        }

    def expected_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) of what the engine should hold: the policy's weights, or the base's beside a loaded adapter."""
        policy = self.accelerator.unwrap_model(self.model)
        if self.adapter is None:
            return self._iter_named_params()
        return ((plain_name(name), value.data) for name, value in policy.named_parameters() if not value.requires_grad)

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in policy_weights(self.accelerator.unwrap_model(self.model)):
            yield name, self.rounding(name, weight) if self.rounding else weight

    def fall_asleep(self) -> None:
        """With `rollout.sleep`, discard the engine's weights and KV cache until the next sync, which loads new weights."""
        if self.enable_sleep_mode:
            self.llm.sleep(level=2)
            self._llm_weights_sleeping = True

    def sync_weights(self) -> None:
        """Load the trainer's policy into the engine, and wake it; the random number generators are restored."""
        with kept_random_state():
            if self.cfg["rollout"]["sync"] == "merged":
                super().sync_weights()  # wakes the memory of the weights
            else:
                self.load_adapter()
            if self.enable_sleep_mode:
                self.llm.wake_up(tags=["kv_cache"])
            self.reset_prefix_cache()  # TRL does so too, and ignores whether it succeeded

    def load_adapter(self) -> None:
        """Load the policy's adapter into the engine, in place of the one of the last sync."""
        with tempfile.TemporaryDirectory(prefix="rlvr-adapter-", dir=memory_backed()) as folder:
            self.accelerator.unwrap_model(self.model).save_pretrained(folder, save_embedding_layers=False)
            self.llm.llm_engine.add_lora(LoRARequest("policy", 1, folder, load_inplace=True))
        self.adapter = LoRARequest("policy", 1, folder)  # it is loaded, so the deleted folder is not read again

    def reset_prefix_cache(self) -> None:
        """Remove the keys and values of earlier weights and texts from vLLM's prefix cache.

        Raises RuntimeError where a request still holds some of them: later completions would be computed from them.
        """
        if self.llm.reset_prefix_cache():
            return
        unfinished = self.llm.llm_engine.get_num_unfinished_requests()
        raise RuntimeError(
            f"vLLM did not empty its prefix cache ({unfinished} requests are unfinished), so completions would be computed "
            "from keys and values of earlier weights. Nothing was sampled from them. Run the launch command again with "
            "retry=true, which continues from the last checkpoint; if this happens again, use rollout=hf, and report this with "
            "the run's train.json."
        )

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], end_ids: Sequence[int]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Return one completion per prompt, from its own seed: token ids with the end token, and their log-probabilities."""
        return sampled(self.generate_outputs(prompts, self.parameters(seeds, end_ids)))

    def parameters(self, seeds: Sequence[int], end_ids: Sequence[int]) -> list[SamplingParams]:
        """Return the decoding settings of rollouts with these seeds."""
        return [
            SamplingParams(
                temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_completion_length, seed=seed, logprobs=0,
                flat_logprobs=True, stop_token_ids=list(end_ids), detokenize=False,
            )
            for seed in seeds
        ]  # fmt: skip

    def sample_for_check(self, prompt: Sequence[int]) -> tuple[list[list[int]], list[list[float]]]:
        """Return completions of one prompt at temperature 1, as `sample` does, and remove them from the prefix cache.

        They do not end at an end token, so that all of them have the same number of tokens, and leave room for `score`.
        """
        tokens = min(CHECKED_TOKENS, self.max_completion_length - 1)
        if tokens < 1:
            return [], []
        parameters = [
            SamplingParams(max_tokens=tokens, seed=seed, logprobs=0, flat_logprobs=True, ignore_eos=True, detokenize=False)
            for seed in range(CHECKED_COMPLETIONS)
        ]
        outputs = self.generate_outputs([prompt] * len(parameters), parameters)
        self.reset_prefix_cache()
        return sampled(outputs)

    def score(self, ids: Sequence[int]) -> Tensor:
        """Return the log-probabilities of a text's tokens from the second on, at temperature 1: (len(ids) - 1,)."""
        (output,) = self.generate_outputs([ids], [SamplingParams(max_tokens=1, seed=0, prompt_logprobs=0, detokenize=False)])
        self.reset_prefix_cache()  # rollouts must not depend on whether a text was scored before them
        scored = output.prompt_logprobs[1:]
        return torch.tensor([logprobs[token].logprob for logprobs, token in zip(scored, ids[1:], strict=True)])

    def generate_outputs(self, prompts: Sequence[Sequence[int]], parameters: Sequence[SamplingParams]) -> Any:
        """Return the engine's outputs, in the order of the prompts.

        The random number generators are restored: vLLM draws some numbers at its first use, and dropout would then differ
        between a resumed run and an uninterrupted one.
        """
        inputs = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        with kept_random_state():
            return self.llm.generate(inputs, list(parameters), use_tqdm=False, lora_request=self.adapter)


class ContinuousEngine:
    """The engine as `continuous_sampling` uses it; completions end at one of `end_ids`.

    vLLM decodes in the order in which completions enter. Where the KV cache is full it puts back the last one that entered.
    """

    def __init__(self, rollouts: VllmRollouts, end_ids: Sequence[int]) -> None:
        self.rollouts, self.llm, self.end_ids = rollouts, rollouts.llm, end_ids
        self.slots: int = self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs

    def begin(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[str]:
        """Let one completion per prompt enter, and return their names in the engine."""
        inputs = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        parameters = self.rollouts.parameters(seeds, self.end_ids)
        names = self.llm.enqueue(inputs, parameters, lora_request=self.rollouts.adapter, use_tqdm=False)
        return [name.partition("-")[0] for name in names]  # outputs have the name without vLLM's random suffix

    def advance(self) -> dict[str, tuple[list[int], list[float]]]:
        """Decode one token of each running completion, and return those that ended, by name."""
        outputs = [output for output in self.llm.llm_engine.step() if output.finished]
        return dict(zip((output.request_id for output in outputs), zip(*sampled(outputs), strict=True), strict=True))

    def abort(self, names: Sequence[str]) -> int:
        """End completions, and return the number of their tokens. With the last one, the engine comes to rest."""
        if not names:
            return 0
        engine = self.llm.llm_engine
        before = patches.unfinished_tokens(self.llm)
        engine.abort_request(list(names))
        tokens = before - patches.unfinished_tokens(self.llm)
        if not engine.has_unfinished_requests():
            for _ in range(2):  # with asynchronous scheduling one pass may have begun; it ends before weights change
                engine.step()
        return tokens


def sampled(outputs: Sequence[Any]) -> tuple[list[list[int]], list[list[float]]]:
    """Return the token ids of vLLM's outputs, and the log-probabilities of these tokens.

    The outputs have flat log-probabilities: one list per completion in place of a dict per token, which costs vLLM less time.
    Raises RuntimeError where they are not those of the sampled tokens, one each.
    """
    completions = [output.outputs[0] for output in outputs]
    ids = [list(completion.token_ids) for completion in completions]
    for tokens, completion in zip(ids, completions, strict=True):
        if completion.logprobs.token_ids != tokens:
            raise RuntimeError("vLLM returned log-probabilities of other tokens than it sampled. Use rollout=hf.")
    return ids, [list(completion.logprobs.logprobs) for completion in completions]


def engine_settings(cfg: Resolved) -> dict[str, Any]:
    """Return the arguments of vllm.LLM: those that follow from the run, and `rollout.vllm` over them."""
    path, revision = model_location(cfg)
    derived: dict[str, Any] = {
        "model": path,
        "tokenizer_revision": revision.get("revision"),
        "dtype": sampling_precision(cfg, "rollout"),
        "max_model_len": cfg["data"]["max_prompt_tokens"] + cfg["rollout"]["max_tokens"],
        "max_num_seqs": sampler_slots(cfg),
        "generation_config": "vllm",  # a published generation config would act on top of the configured decoding
        "distributed_executor_backend": "external_launcher",
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled: the importance correction's denominator
        "seed": 0,
        "enable_sleep_mode": cfg["rollout"].get("sleep", False),
        **revision,
    }
    if cfg["rollout"]["sync"] == "adapter":
        derived |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_slots(cfg["peft"]["config"]["r"])}
    return derived | shared_engine(cfg, cfg["rollout"]["vllm"], own_gpu_gib())


def class_name(instance: object) -> str:
    """Return the module and the name of an object's class."""
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


def lora_slots(rank: int) -> int:
    """Return the smallest `max_lora_rank` that vLLM supports and that is at least `rank`."""
    return next(slots for slots in (8, 16, 32, 64, 128, 256, 320, 512) if slots >= rank)


def memory_backed() -> str | None:
    """Return a folder in memory for files that are read once, or None where the system has none."""

    return "/dev/shm" if Path("/dev/shm").is_dir() else None
