"""Measure what sampling in bfloat16 keeps of an update, by the size of the update and the way in which weights are rounded.

    python bench/precision.py [--model tiny --prompts 500 --methods lora,full --reaches 3e-4,1e-3,3e-3,1e-2 --weights-only]

The base's weights are rounded to bfloat16 first, as published models have them. ΔW has the direction of Adam's first step on
sampled completions with random advantages: sign(gradient) for `full`, and B = sign(gradient), A random, rank 8, for `lora`; it
is scaled to each reach ‖ΔW‖/‖W0‖ of the linear layers. On the completions are printed, with p the policy in float32:

    kept  share of the update's effect: ⟨log p' − log p0', log p − log p0⟩ / ‖log p − log p0‖², where p' and p0' are policy and
          base as computed by the sampler, over all tokens of the vocabulary; ± one standard error over completions
    KL    KL(p ‖ p') per token; its first line, of the base, is what bfloat16 products alone cause
"""

import argparse
import copy
import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rlvr_sweeps.assets.problems import all_prompt_ids, load_problems
from rlvr_sweeps.config.compose import offline_composer
from rlvr_sweeps.training.models import load_model
from rlvr_sweeps.training.seeded_sampling import sample
from rlvr_sweeps.training.weight_rounding import rounding_of

RANK, ROWS = 8, 32  # rank of LoRA's update; completions per forward pass


class Pair(torch.nn.Module):
    """A linear layer whose weight is the sum of two bfloat16 tensors; its products are added in float32, or rounded first."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rounds_once: bool) -> None:
        super().__init__()
        self.high = weight.bfloat16()
        self.low = (weight - self.high.float()).bfloat16()
        self.bias, self.rounds_once = None if bias is None else bias.bfloat16(), rounds_once

    def forward(self, x: Tensor) -> Tensor:
        """Return the product of `x`."""
        x = x.bfloat16()
        if self.rounds_once:  # one product over twice the width, which accumulates in float32
            return functional.linear(torch.cat([x, x], -1), torch.cat([self.high, self.low], 1), self.bias)
        return functional.linear(x, self.high, self.bias) + functional.linear(x, self.low)


class Beside(torch.nn.Module):
    """A linear layer with its update beside it, as a trainer computes an adapter: under autocast both outputs are rounded."""

    def __init__(self, linear: Any, change: Tensor) -> None:
        super().__init__()
        self.linear, self.change = linear, change

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both products."""
        out: Tensor = self.linear(x) + functional.linear(x, self.change)
        return out


def linear_layers(model: Any) -> dict[str, Any]:
    """Return the linear layers of the blocks, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}


def with_weights(model: Any, changes: dict[str, Tensor], weights: str) -> Any:
    """Return a copy of the model with its update, computed as `weights` names: a rounding, pair, pair_rounded or beside."""
    policy = copy.deepcopy(model)
    modules = dict(policy.named_modules())
    rounding = rounding_of(weights, 0)
    for name, linear in linear_layers(policy).items():
        parent, _, child = name.rpartition(".")
        weight = linear.weight.data + changes[name]
        if weights.startswith("pair"):
            setattr(modules[parent], child, Pair(weight, linear.bias, weights == "pair"))
        elif weights == "beside":
            setattr(modules[parent], child, Beside(linear, changes[name]))
        else:
            linear.weight.data = rounding(f"{name}.weight", weight) if rounding else weight
    return policy


def log_probabilities(model: Any, texts: list[tuple[list[int], list[int]]], autocast: bool = False) -> list[Tensor]:
    """Return the log-probabilities of the vocabulary at each token of each completion: (tokens, vocabulary)."""
    results = []
    for start in range(0, len(texts), ROWS):
        batch = texts[start : start + ROWS]
        longest = max(len(prompt) + len(completion) for prompt, completion in batch)
        rows = [prompt + completion + [0] * (longest - len(prompt) - len(completion)) for prompt, completion in batch]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(input_ids=torch.tensor(rows)).logits.float()  # causal, so that padding on the right has no effect
        results += [
            logits[index, len(prompt) - 1 : len(prompt) + len(completion) - 1].log_softmax(-1)
            for index, (prompt, completion) in enumerate(batch)
        ]
    return results


def kept(effect: list[Tensor], true: list[Tensor]) -> tuple[float, float]:
    """Return the share of the true effect in a sampler's, and its standard error over completions (of a ratio of sums)."""
    inner = torch.tensor([float((a * b).sum()) for a, b in zip(effect, true, strict=True)], dtype=torch.float64)
    size = torch.tensor([float(b.square().sum()) for b in true], dtype=torch.float64)
    share = float(inner.sum() / size.sum())
    rest = inner - share * size
    return share, float(math.sqrt(len(rest) / (len(rest) - 1)) * rest.norm() / size.sum())


def divergence(p: list[Tensor], q: list[Tensor]) -> float:
    """Return the mean KL(p ‖ q) per token."""
    values = [(a.double().exp() * (a.double() - b.double())).sum(-1) for a, b in zip(p, q, strict=True)]
    return float(torch.cat(values).mean())


def difference(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """Return a − b, completion by completion."""
    return [left - right for left, right in zip(a, b, strict=True)]


def directions(model: Any, texts: list[tuple[list[int], list[int]]]) -> dict[str, dict[str, Tensor]]:
    """Return ΔW of Adam's first step, up to its size, by method and layer."""
    generator = torch.Generator().manual_seed(0)
    for prompt, completion in texts[:64]:
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].float()
        logps = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])
        (float(torch.randn((), generator=generator)) * logps.sum()).backward()
    full, lora = {}, {}
    for name, linear in linear_layers(model).items():
        gradient = linear.weight.grad
        a = torch.randn(RANK, linear.in_features, generator=generator) / math.sqrt(linear.in_features)
        full[name], lora[name] = gradient.sign(), (gradient @ a.T).sign() @ a
    return {"full": full, "lora": lora}


def main() -> None:
    """Print a table for each method and reach."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--methods", default="lora,full")
    parser.add_argument("--reaches", default="3e-4,1e-3,3e-3,1e-2")
    parser.add_argument("--weights-only", action="store_true", help="products in float32 only")
    options = parser.parse_args()
    cfg = offline_composer().point([f"model={options.model}", "model.rounded_to_bf16=true"]).cfg
    model, tokenizer = load_model(cfg)
    model.eval()
    prompts = all_prompt_ids(tokenizer, load_problems(cfg["data"])[: options.prompts], cfg["model"]["system_prompt"])
    completions = sample(
        model, prompts, list(range(len(prompts))), max_tokens=cfg["rollout"]["max_tokens"], temperature=1.0, top_p=1.0,
        pad_id=tokenizer.pad_token_id, end_ids=[tokenizer.eos_token_id],
    )  # fmt: skip
    texts = [(list(prompt), list(completion)) for prompt, completion in zip(prompts, completions, strict=True)]
    print(f"{time.strftime('%Y-%m-%d')}, {options.model}, {len(texts)} completions, {sum(map(len, completions)):,} tokens")
    # label -> (weights, dtype of the model, autocast)
    samplers: dict[str, tuple[str, torch.dtype, bool]] = {
        "float32 products, bfloat16 weights": ("bfloat16", torch.float32, False),
        "float32 products, stochastic weights": ("stochastic", torch.float32, False),
    }
    if not options.weights_only:
        half = torch.bfloat16
        samplers |= {
            "bfloat16 weights (TRL, vLLM)": ("bfloat16", half, False),
            "stochastic weights": ("stochastic", half, False),
            "pair of weights, summed in float32": ("pair", half, False),
            "pair of weights, summed in bfloat16": ("pair_rounded", half, False),
            "trainer, autocast, adapter beside": ("beside", torch.float32, True),
            "trainer, autocast, weights in float32": ("float32", torch.float32, True),
        }
    changes = directions(model, texts)
    nothing = {name: torch.zeros_like(linear.weight) for name, linear in linear_layers(model).items()}
    size = math.sqrt(sum(float(linear.weight.detach().square().sum()) for linear in linear_layers(model).values()))

    def compute(update: dict[str, Tensor], sampler: tuple[str, torch.dtype, bool]) -> list[Tensor]:
        weights, dtype, autocast = sampler
        return log_probabilities(with_weights(model, update, weights).to(dtype), texts, autocast)

    exact = ("float32", torch.float32, False)
    base = compute(nothing, exact)
    bases = {label: compute(nothing, sampler) for label, sampler in samplers.items()}
    for label, values in bases.items():
        print(f"  base, {label:40s}           KL {divergence(base, values):8.1e}", flush=True)
    for method in options.methods.split(","):
        length = math.sqrt(sum(float(change.square().sum()) for change in changes[method].values()))
        for reach in map(float, options.reaches.split(",")):
            update = {name: change * (reach * size / length) for name, change in changes[method].items()}
            true = compute(update, exact)
            effect = difference(true, base)
            print(f"{method}, reach {reach:g}: KL(policy ‖ base) {divergence(true, base):.1e}")
            for label, sampler in samplers.items():
                values = compute(update, sampler)
                share, error = kept(difference(values, bases[label]), effect)
                print(f"  {label:40s} kept {share:6.3f} ± {error:.3f}  KL {divergence(true, values):8.1e}", flush=True)


if __name__ == "__main__":
    main()
