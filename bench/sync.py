"""Seconds to bring vLLM to the trainer's policy: the adapter alone, weights merged aside, and TRL's own merge in place.

    .venv-vllm/bin/python bench/sync.py        (make venv-vllm first; real vLLM, on the CPU)

On a random Qwen2 of 100 million parameters in float32, rank 32 on all linear layers: medians of nine, taken in turn.
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
TEXT = list(range(10, 74))


def make_base(folder: Path) -> Path:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=8192, hidden_size=768, intermediate_size=4480, num_hidden_layers=8, num_attention_heads=12,
        num_key_value_heads=2, tie_word_embeddings=False, max_position_embeddings=1024, eos_token_id=0,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sampler_of(base: Path, sync: str) -> Any:
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
    return VllmRollouts(
        cfg, model=policy.eval(), accelerator=Accelerator(cpu=True), processing_class=make_tokenizer(), max_num_seqs=8
    )


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def trl_sync(sampler: Any) -> None:
    """TRL's own iteration, which merges and unmerges in place, pushed as ours is."""
    engine = sampler.engine_model
    for name, value in VLLMGeneration._iter_named_params(sampler):
        engine.load_weights([(name, value)])


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base")
        alone, whole = sampler_of(base, "adapter"), sampler_of(base, "merged")
        ways: dict[str, Callable[[], Any]] = {
            "the adapter alone": alone.sync_weights,
            "merged aside": whole.sync_weights,
            "TRL, merged in place": lambda: trl_sync(whole),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, work in ways.items():
                taken[name].append(seconds(work))
        size = sum(value.numel() for value in whole.model.parameters())
        print(f"{time.strftime('%Y-%m-%d')}, one thread, {size / 1e6:.0f} M parameters, the adapter's included")
        for name, times in taken.items():
            print(f"  {name:<22} {statistics.median(times):6.3f} s")
        whole.sync_weights()
        apart = [gap(sampler.model, sampler, TEXT) for sampler in (alone, whole)]
        print(f"  apart from the trainer: adapter {apart[0]:.1e}, merged {apart[1]:.1e} nats per token")


if __name__ == "__main__":
    main()
