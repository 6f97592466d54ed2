"""Check that the sampler (vLLM) and the trainer are the same policy, and measure how far they differ.

A sampler with weights of an earlier step, or with wrong ones, raises no error: the loss falls, rewards look plausible, and the
gradient is that of another policy. So both score a fixed text at the start and every `rollout.check_every` steps, and the run
stops where they differ. vLLM samples and scores by different code, so it also scores what it has sampled itself. Sampled
tokens are scored by the trainer too, for the importance correction and its metrics.

The trainer computes in bfloat16 as well, and the weights are compared after their rounding. What the rounding loses is measured
apart: against the policy in float32 (`policy_gap_nats`), and as the share of the update in vLLM's weights (`update_kept`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.training.methods.merging import plain_name, policy_weights


@torch.no_grad()
def trainer_scores(policy: Any, ids: Sequence[int]) -> Tensor:
    """Return the trainer's log-probabilities of a text's tokens from the second on, without dropout: (len(ids) - 1,)."""
    was_training = policy.training
    policy.eval()
    try:
        tokens = torch.tensor([list(ids)], device=policy.device)
        logits = policy(input_ids=tokens).logits[0, :-1].float()
        return logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0].cpu()
    finally:
        policy.train(was_training)


def gap(policy: Any, sampler: Any, ids: Sequence[int]) -> float:
    """Return the mean absolute difference of the two log-probabilities over a fixed text, in nats per token."""
    return float((trainer_scores(policy, ids) - sampler.score(ids)).abs().mean())


def refuse_disagreement(policy: Any, sampler: Any, ids: Sequence[int], tolerance: float) -> float:
    """Return `gap`; raise Refused where it exceeds `tolerance` nats per token, or where the engine holds a wrong weight.

    The weights are compared as well, since in bfloat16 the policy of an earlier step may be within the tolerance.
    """
    difference = gap(policy, sampler, ids)
    tensors = sorted(differing(sampler), key=lambda pair: -pair[1])
    if difference <= tolerance and not tensors:
        return difference
    largest = ", ".join(f"{name} (by {by:.2g})" for name, by in tensors[:5])
    reason = f"Tensors that differ most: {largest}" if tensors else "All weights are equal, so the two compute differently"
    raise Refused(
        f"vLLM and the trainer are not the same policy: their log-probabilities of a fixed text differ by {difference:.3g} "
        f"nats per token (allowed: rollout.tolerance_nats={tolerance:g}). {reason}. Use rollout=hf, or report this with the "
        "run's train.json."
    )


def sampling_gap(sampler: Any, ids: Sequence[int]) -> float:
    """Return the mean absolute difference of vLLM's two log-probabilities of tokens that it samples, in nats per token.

    One is returned with the sampled token, computed step by step in a batch; the other is computed from the whole text.
    """
    completions, sampled = sampler.sample_for_check(ids)
    if not completions:
        return 0.0
    scored = [sampler.score([*ids, *completion])[len(ids) - 1 :] for completion in completions]
    differences = torch.tensor(sampled) - torch.stack(scored)
    return float(differences.abs().mean())


def refuse_sampling_gap(sampler: Any, ids: Sequence[int], tolerance: float) -> float:
    """Return `sampling_gap`; raise Refused where it exceeds `tolerance` nats per token."""
    difference = sampling_gap(sampler, ids)
    if difference <= tolerance:
        return difference
    facts = sampler.engine_facts()
    raise Refused(
        "vLLM samples from another distribution than the one it scores: its log-probabilities of tokens that it sampled differ "
        f"by {difference:.3g} nats per token from those that it computes for the same text (allowed: rollout.tolerance_nats="
        f"{tolerance:g}). Its weights are right, so its decoding is wrong on this machine (model runner "
        f"{facts['model_runner']}, attention {', '.join(facts['attention_backends'])}, CUDA graphs {facts['cudagraph_mode']}). "
        "Try the environment variable VLLM_USE_V2_MODEL_RUNNER=0, rollout.vllm.enforce_eager=true or another backend "
        "(+rollout.vllm.attention_backend=), or use rollout=hf, and report this with the run's train.json."
    )


def engine_lookup(sampler: Any) -> Callable[[str, Tensor], Tensor | None]:
    """Return a function of (name, weight) that returns vLLM's copy of this weight of the plain model, or None without one.

    vLLM packs q, k, v into one tensor and gate, up into another, and pads the vocabulary. It has no copy under another name or
    in another shape of an adapter's matrices, and in layouts of some kernels.
    """
    engine = sampler.engine_model
    engine_weights = dict(engine.named_parameters())
    packed = {part: (fused, parts) for fused, parts in engine.packed_modules_mapping.items() for part in parts}
    rows = {plain_name(name): len(value) for name, value in sampler.model.named_parameters() if value.ndim}

    def look_up(name: str, weight: Tensor) -> Tensor | None:
        part = name.split(".")[-2]
        fused, parts = packed.get(part, (part, [part]))
        held = engine_weights.get(name.replace(part, fused), engine_weights.get(name.replace(part, f"{fused}.base_layer")))
        start = sum(rows[name.replace(part, earlier)] for earlier in parts[: parts.index(part)])
        if held is None or held[start : start + len(weight)].shape != weight.shape:
            return None
        return held[start : start + len(weight)].detach()

    return look_up


def differing(sampler: Any) -> Iterator[tuple[str, float]]:
    """Yield (name, largest difference relative to the tensor's largest value) of each wrong weight in vLLM.

    One layer is in memory at a time. Tensors of which vLLM has no copy are skipped.
    """
    look_up = engine_lookup(sampler)
    for name, weight in sampler.expected_weights():
        held = look_up(name, weight)
        if held is None:
            continue
        expected = weight.to(held).float()
        difference = (held.float() - expected).abs().max() / expected.abs().max()
        if difference > 0:
            yield name, float(difference)


def sampler_weights(policy: Any, sampler: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (name, the policy's weight, vLLM's copy of it); nothing where vLLM has the adapter beside the base's weights."""
    if sampler.adapter is not None:
        return
    look_up = engine_lookup(sampler)
    for name, weight in policy_weights(policy):
        held = look_up(name, weight)
        if held is not None:
            yield name, weight, held


def importance(trainer_logps: Tensor, batch: dict[str, Any], low: float | None, high: float | None) -> Tensor:
    """Return the weights of sampled tokens in the loss: trainer's over sampler's probability, cut to [low, high].

    Shape (rows, tokens). Equal to TRL's `token_truncate`: 1 at padding, and where vLLM returned no log-probability.
    """
    log_ratio = (trainer_logps - batch["sampling_per_token_logps"]) * batch["completion_mask"]
    return log_ratio.nan_to_num(nan=0.0).exp().clamp(min=low, max=high)


class Scores:
    """The trainer's and the sampler's log-probabilities of a step's sampled tokens, collected from its forward passes."""

    def __init__(self) -> None:
        self.pairs: list[Tensor] = []  # of each pass: (tokens, 2), the trainer's and the sampler's

    def add(self, trainer_logps: Tensor, batch: dict[str, Any]) -> None:
        """Add the completion tokens of one pass."""
        mask = batch["completion_mask"].bool()
        self.pairs.append(torch.stack([trainer_logps[mask], batch["sampling_per_token_logps"][mask]], dim=1))

    def mismatch(self, accelerator: Any) -> dict[str, float]:
        """Return the columns of `mismatch` over all processes, and clear the collection."""
        pairs = accelerator.gather(accelerator.pad_across_processes(torch.cat(self.pairs), pad_index=torch.nan))
        self.pairs.clear()
        trainer_logps, sampler_logps = pairs[~pairs.isnan().any(1)].T
        return mismatch(trainer_logps, sampler_logps)


def mismatch(trainer: Tensor, sampler: Tensor) -> dict[str, float]:
    """Return the columns of metrics.jsonl about sampled tokens; inputs are log-probabilities in nats, shape (tokens,).

    With r the trainer's over the sampler's probability, KL(trainer‖sampler) is estimated from the sampler's tokens as the mean
    of r·log r − r + 1, which is never negative.
    """

    log_ratio = (trainer - sampler).double()
    ratio = log_ratio.exp()
    return {
        "sampler_ratio_mean": float(ratio.mean()),
        "sampler_ratio_p99": float(ratio.kthvalue(math.ceil(0.99 * len(ratio))).values),
        "sampler_kl": float((ratio * log_ratio - ratio + 1).mean()),
    }
