"""Compare a training step of DoRA with one of LoRA: PEFT's DoRA, and DoRA with the norm computed from the factors.

    python bench/dora.py [--hidden 1536 --intermediate 8960 --layers 1 --tokens 512]

A step is a forward and backward pass through Qwen2 layers with random weights, with rank 32 on all linear layers. Printed are
medians over rounds in which the methods alternate. A GPU is used with bfloat16 autocast; without one, one core in float32.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlvr_sweeps.config.compose import offline_composer
from rlvr_sweeps.training.methods.adapters import attach

ROUNDS = 7


def make_policy(options: argparse.Namespace, method: str, factored: bool, dropout: float, device: str) -> Any:
    """Return a model with random weights and the adapter of `method`, in training mode."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1024, hidden_size=options.hidden, intermediate_size=options.intermediate, num_hidden_layers=options.layers,
        num_attention_heads=12, num_key_value_heads=2,
    )  # fmt: skip
    cfg = offline_composer().point([f"peft={method}", "rank=32", f"dropout={dropout}", f"peft.factored_norm={factored}"]).cfg
    return attach(Qwen2ForCausalLM(config), cfg["peft"], seed=0).to(device).train()


def step_seconds(model: Any, ids: torch.Tensor) -> float:
    """Return the seconds of a forward and a backward pass over `ids` (batch, tokens)."""
    model.zero_grad()
    start = time.perf_counter()
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
        loss = model(input_ids=ids).logits.float().square().mean()
    loss.backward()
    if ids.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print the median seconds of each method and their ratio to LoRA, without and with dropout."""
    parser = argparse.ArgumentParser()
    for name, value in (("hidden", 1536), ("intermediate", 8960), ("layers", 1), ("tokens", 512)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    device_name = torch.cuda.get_device_name() if device == "cuda" else "one core"
    print(
        f"{time.strftime('%Y-%m-%d')}, {device_name}; hidden {options.hidden}, {options.layers} layers, "
        f"{options.tokens} tokens, rank 32"
    )
    ids = torch.randint(0, 1024, (1, options.tokens), device=device)
    for dropout in (0.0, 0.05):
        variants = {"LoRA": ("lora", True), "DoRA, PEFT": ("dora", False), "DoRA, factored": ("dora", True)}
        models = {
            name: make_policy(options, method, factored, dropout, device) for name, (method, factored) in variants.items()
        }
        times: dict[str, list[float]] = {name: [] for name in models}
        for round_index in range(ROUNDS + 1):
            for name, model in models.items():
                step = step_seconds(model, ids)
                if round_index:  # the first round warms up
                    times[name].append(step)
        medians = {name: statistics.median(values) for name, values in times.items()}
        for name, median in medians.items():
            print(f"  dropout {dropout:<4}  {name:<16} {median:7.3f} s   {median / medians['LoRA']:.2f} times LoRA")


if __name__ == "__main__":
    main()
