"""That sampler and trainer are one policy: both score a fixed text, and what was sampled is scored again.

A sampler that lags behind, or holds other weights than it should, gives no error: the loss falls, rewards look plausible, and
the gradient is of another policy. So the run asks, at its start and every `rollout.check_every` steps, and stops where the
answers differ.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rlvr_sweeps.errors import Refused


@torch.no_grad()
def trainer_scores(policy: Any, ids: Sequence[int]) -> Tensor:
    """The trainer's log-probabilities of a text's tokens from the second on, without dropout, shape (len(ids) - 1,)."""
    was_training = policy.training
    policy.eval()
    try:
        tokens = torch.tensor([list(ids)], device=policy.device)
        logits = policy(input_ids=tokens).logits[0, :-1].float()
        return logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0].cpu()
    finally:
        policy.train(was_training)


def gap(policy: Any, sampler: Any, ids: Sequence[int]) -> float:
    """Mean absolute difference of the two log-probabilities over a fixed text, in nats per token."""
    return float((trainer_scores(policy, ids) - sampler.score(ids)).abs().mean())


def refuse_disagreement(policy: Any, sampler: Any, ids: Sequence[int], tolerance: float) -> float:
    """`gap`; Refused where it is above `tolerance` nats per token, with the tensors in which the two differ."""
    found = gap(policy, sampler, ids)
    if found <= tolerance:
        return found
    apart = sorted(differing(sampler.given(), sampler.engine_model), key=lambda pair: -pair[1])
    words = ", ".join(f"{name} (by {by:.2g})" for name, by in apart[:5])
    named = f"Tensors that differ most: {words}" if apart else "All weights are equal, so the two compute differently"
    raise Refused(
        f"vLLM and the trainer are not one policy: their log-probabilities of a fixed text differ by {found:.3g} nats per "
        f"token (rollout.tolerance_nats={tolerance:g}). {named}. Use rollout=hf, or report this with the run's train.json."
    )


def differing(weights: Iterable[tuple[str, Tensor]], engine: Any) -> Iterator[tuple[str, float]]:
    """(name, largest difference relative to the tensor's largest value) of the weights that vLLM's module holds otherwise.

    vLLM keeps q, k, v and gate, up in one tensor each, and pads the vocabulary. What it has under no name is passed over.
    """
    theirs = dict(engine.named_parameters())
    packed = {part: (whole, parts) for whole, parts in engine.packed_modules_mapping.items() for part in parts}
    begins: dict[str, int] = {}
    for name, weight in sorted(weights, key=lambda pair: order(pair[0], packed)):
        part = name.split(".")[-2]
        whole = name.replace(part, packed[part][0]) if part in packed else name
        held = theirs.get(whole, theirs.get(whole.replace(".weight", ".base_layer.weight")))
        if held is None:
            continue
        start = begins.get(whole, 0)
        begins[whole] = start + len(weight)
        mine = weight.to(held.dtype).float().cpu()
        off = float((held[start : start + len(weight)].detach().float().cpu() - mine).abs().max() / mine.abs().max())
        if off > 0:
            yield name, off


def order(name: str, packed: dict[str, Any]) -> tuple[str, int]:
    """Sorts the parts of a fused tensor as they lie in it."""
    part = name.split(".")[-2]
    if part not in packed:
        return name, 0
    whole, parts = packed[part]
    return name.replace(part, whole), parts.index(part)


def mismatch(trainer: Tensor, sampler: Tensor) -> dict[str, float]:
    """metrics.jsonl's columns about sampled tokens: r = trainer's over sampler's probability, 1-d inputs, in nats.

    KL(trainer‖sampler) is estimated from the sampler's own tokens as the mean of r·log r − r + 1, which is never negative.
    """
    log_ratio = (trainer - sampler).double()
    ratio = log_ratio.exp()
    return {
        "sampler_ratio_mean": float(ratio.mean()),
        "sampler_ratio_p99": float(ratio.kthvalue(math.ceil(0.99 * len(ratio))).values),
        "sampler_kl": float((ratio * log_ratio - ratio + 1).mean()),
    }
