"""Measure how far training moved the weights (the reach), what bfloat16 keeps of it, and that frozen tensors did not move.

Reach is ‖ΔW‖/‖W0‖ per kind of layer, where ΔW is the merged policy minus the published W0, also for methods that begin with
another split of W0 (PiSSA, MiLoRA). At one shared learning rate it differs between methods by orders of magnitude, so a ranking
of methods is confounded with it.

Samplers hold their weights in bfloat16. Published weights have bfloat16 values, so rounding to the nearest one removes an
update that is smaller than half a step of this format, and most of one of small reach. Rounding at random
(weight_rounding.py) keeps its mean.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlvr_sweeps.training.methods.merging import policy_weights
from rlvr_sweeps.training.models import PublishedWeights
from rlvr_sweeps.training.weight_rounding import Rounding


class Reach(NamedTuple):
    """Measures of an update by kind of layer, by the layers' name, and for `all`; norms are over all layers of a kind."""

    reach: dict[str, float]  # ‖ΔW‖/‖W0‖
    bfloat16_error: dict[str, float]  # ‖bf16(W) − W‖/‖ΔW‖ of the nearest values: 0 where they have all of the update, 1 none
    kept: dict[str, float]  # share of the update that the sampler has, as `update_kept`; 1 in the mean: unbiased


MOVED = 1e-6  # the reach below which a kind of layer has not moved: the rounding errors of a merge in float32 are smaller


def reach(model: Any, published: PublishedWeights, rounding: Rounding | None = None) -> Reach:
    """Return the measures of a policy's update; `rounding` is that of the sampler's weights, None: float32.

    Kinds of layers that did not move are left out of the second and third measure.
    """
    moved: dict[str, float] = defaultdict(float)
    size: dict[str, float] = defaultdict(float)
    lost: dict[str, float] = defaultdict(float)
    inner: dict[str, float] = defaultdict(float)
    for name, weight in policy_weights(model):
        if name not in published:  # tied to another tensor, which is published
            continue
        origin, present = published[name], weight.detach().float().cpu()
        sampled = rounding(name, weight.detach()).float().cpu() if rounding else present
        change = present - origin
        kind = name.split(".")[-2]
        error = present.bfloat16().float() - present
        sums = ((moved, change, change), (size, origin, origin), (lost, error, error), (inner, sampled - origin, change))
        for total, left, right in sums:
            product = float((left.double() * right.double()).sum())
            total[kind] += product
            total["all"] += product
    kinds = sorted(size)
    by_kind = {kind: math.sqrt(moved[kind] / size[kind]) for kind in kinds}
    return Reach(
        by_kind,
        {kind: math.sqrt(lost[kind] / moved[kind]) for kind in kinds if moved[kind]},
        {kind: inner[kind] / moved[kind] for kind in kinds if by_kind[kind] > MOVED},
    )


def update_kept(weights: Iterable[tuple[str, Tensor, Tensor]], published: PublishedWeights) -> float | None:
    """Return ⟨Ŵ − W0, ΔW⟩/‖ΔW‖² over all layers: the share of the update in the sampler's weights Ŵ, along the update.

    `weights` yields (name, W0 + ΔW, Ŵ). None where the weights did not move.
    """
    size = moved = inner = 0.0
    for name, weight, sampled in weights:
        if name in published:
            origin = published[name].double()
            change = weight.detach().double().cpu() - origin
            size += float(origin.square().sum())
            moved += float(change.square().sum())
            inner += float(((sampled.detach().double().cpu() - origin) * change).sum())
    return inner / moved if moved > MOVED**2 * size else None


def frozen_digests(model: Any) -> dict[str, str]:
    """Return a hash of every tensor that must not move, by name."""
    frozen = ((name, parameter) for name, parameter in model.named_parameters() if not parameter.requires_grad)
    return {name: tensor_digest(parameter) for name, parameter in frozen}


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes."""
    bits = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(bits.numpy().data).hexdigest()


def changed_tensors(before: dict[str, str], model: Any) -> list[str]:
    """Return the names of frozen tensors whose hash differs from `before`."""

    after = frozen_digests(model)
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
