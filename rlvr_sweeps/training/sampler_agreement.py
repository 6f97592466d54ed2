"""That sampler and trainer are one policy: both score a fixed text, and what was sampled is scored again.

A sampler that lags behind, or holds other weights than it should, gives no error: the loss falls, rewards look plausible, and
the gradient is of another policy. So the run asks, at its start and every `rollout.check_every` steps, and stops where the
answers differ.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.training.methods.merging import plain_name


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
    """`gap`; Refused where it is above `tolerance` nats per token, or where the engine holds a weight that is not the policy's.

    In bfloat16 a sampler of some steps ago may be within the tolerance; its weights are then still others.
    """
    found = gap(policy, sampler, ids)
    apart = sorted(differing(sampler), key=lambda pair: -pair[1])
    if found <= tolerance and not apart:
        return found
    words = ", ".join(f"{name} (by {by:.2g})" for name, by in apart[:5])
    named = f"Tensors that differ most: {words}" if apart else "All weights are equal, so the two compute differently"
    raise Refused(
        f"vLLM and the trainer are not one policy: their log-probabilities of a fixed text differ by {found:.3g} nats per "
        f"token (rollout.tolerance_nats={tolerance:g}). {named}. Use rollout=hf, or report this with the run's train.json."
    )


def differing(sampler: Any) -> Iterator[tuple[str, float]]:
    """(name, largest difference relative to the tensor's largest value) of weights that vLLM holds otherwise than it was given.

    One layer in memory at a time. vLLM keeps q, k, v and gate, up in one tensor each, and pads the vocabulary. What it has
    under no name, or in another shape, is passed over: an adapter's own matrices, and layouts of kernels not known here.
    """
    engine = sampler.engine_model
    theirs = dict(engine.named_parameters())
    packed = {part: (whole, parts) for whole, parts in engine.packed_modules_mapping.items() for part in parts}
    rows = {plain_name(name): len(value) for name, value in sampler.model.named_parameters() if value.ndim}
    for name, weight in sampler.given():
        part = name.split(".")[-2]
        whole, parts = packed.get(part, (part, [part]))
        held = theirs.get(name.replace(part, whole), theirs.get(name.replace(part, f"{whole}.base_layer")))
        start = sum(rows[name.replace(part, other)] for other in parts[: parts.index(part)])
        if held is None or held[start : start + len(weight)].shape != weight.shape:
            continue
        mine = weight.to(held)
        off = (held[start : start + len(weight)].detach().float() - mine.float()).abs().max() / mine.float().abs().max()
        if off > 0:
            yield name, float(off)


def importance(trainers: Tensor, batch: dict[str, Any], low: float | None, high: float | None) -> Tensor:
    """The sampled tokens' weights in the loss: trainer's over sampler's probability, cut to [low, high]; shape (rows, tokens).

    What TRL computes in `token_truncate`: 1 where there is padding, or where vLLM gave no log-probability.
    """
    apart = (trainers - batch["sampling_per_token_logps"]) * batch["completion_mask"]
    return apart.nan_to_num(nan=0.0).exp().clamp(min=low, max=high)


class Scores:
    """Both log-probabilities of what a step sampled, as its passes go."""

    def __init__(self) -> None:
        self.noted: list[Tensor] = []  # each (tokens, 2): the trainer's, the sampler's

    def note(self, trainers: Tensor, batch: dict[str, Any]) -> None:
        there = batch["completion_mask"].bool()
        self.noted.append(torch.stack([trainers[there], batch["sampling_per_token_logps"][there]], dim=1))

    def mismatch(self, accelerator: Any) -> dict[str, float]:
        """How far the two are apart over all processes; forgets them."""
        both = accelerator.gather(accelerator.pad_across_processes(torch.cat(self.noted), pad_index=torch.nan))
        self.noted.clear()
        trainers, samplers = both[~both.isnan().any(1)].T
        return mismatch(trainers, samplers)


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
