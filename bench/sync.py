"""Measure the seconds of loading the trainer's policy into vLLM: adapter only, merged copies of weights, TRL's merge in place.

    .venv-vllm/bin/python bench/sync.py        (after make venv-vllm; real vLLM on the CPU)

The policy is a Qwen2 of 100 million random float32 parameters with rank 32 on all linear layers. Printed are medians of nine
rounds in which the ways alternate.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}

import torch
from accelerate import Accelerator
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl.generation.vllm_generation import VLLMGeneration

from rlvr_sweeps.assets.tiny import make_tokenizer
from rlvr_sweeps.config.compose import offline_composer
from rlvr_sweeps.training.methods.adapters import attach
from rlvr_sweeps.training.sampler_agreement import gap
from rlvr_sweeps.training.vllm_rollouts import VllmRollouts

ROUNDS = 9
TEXT = list(range(10, 74))  # token ids of the text on which trainer and vLLM are compared


def make_base(folder: Path) -> Path:
    """Write a random base model and a tokenizer to `folder`, and return it."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=8192, hidden_size=768, intermediate_size=4480, num_hidden_layers=8, num_attention_heads=12,
        num_key_value_heads=2, tie_word_embeddings=False, max_position_embeddings=1024, eos_token_id=0,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_sampler(base: Path, sync: str) -> Any:
    """Return vLLM rollouts of a LoRA policy on `base` with nonzero B, for a value of rollout.sync."""
    cfg = offline_composer().point([
        "rollout=vllm", "model=local", "model.name=bench", f"model.path={base}", "data.path=none.jsonl", "rank=32",
        "benchmark.local.path=none.jsonl", "rollout.max_tokens=128", f"rollout.sync={sync}", "rollout.vllm.enforce_eager=true",
        "+rollout.vllm.kv_cache_memory_bytes=67108864",
    ]).cfg  # fmt: skip
    policy = attach(Qwen2ForCausalLM.from_pretrained(base, dtype=torch.float32), cfg["peft"], seed=0)
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.01)
    return VllmRollouts(cfg, model=policy.eval(), accelerator=Accelerator(cpu=True), processing_class=make_tokenizer())


def seconds(function: Callable[[], Any]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def trl_sync(sampler: Any) -> None:
    """Load the weights with TRL's own iteration, which merges the adapter in place and unmerges it."""
    engine = sampler.engine_model
    for name, value in VLLMGeneration._iter_named_params(sampler):
        engine.load_weights([(name, value)])


def main() -> None:
    """Print the median seconds of each sync, and the difference between trainer and vLLM after it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base")
        adapter, merged = make_sampler(base, "adapter"), make_sampler(base, "merged")
        syncs: dict[str, Callable[[], Any]] = {
            "adapter only": adapter.sync_weights,
            "merged copies": merged.sync_weights,
            "TRL, merged in place": lambda: trl_sync(merged),
        }
        times: dict[str, list[float]] = {name: [] for name in syncs}
        for _ in range(ROUNDS):
            for name, sync in syncs.items():
                times[name].append(seconds(sync))
        size = sum(value.numel() for value in merged.model.parameters())
        print(f"{time.strftime('%Y-%m-%d')}, one thread, {size / 1e6:.0f} M parameters with the adapter")
        for name, values in times.items():
            print(f"  {name:<22} {statistics.median(values):6.3f} s")
        merged.sync_weights()
        differences = [gap(sampler.model, sampler, TEXT) for sampler in (adapter, merged)]
        print(f"  difference from the trainer: adapter {differences[0]:.1e}, merged {differences[1]:.1e} nats per token")


if __name__ == "__main__":
    main()
