"""Measure how far training moved the weights (the reach), what bfloat16 keeps of it, and that frozen tensors did not move.

Reach is ‖ΔW‖/‖W0‖ per kind of layer, where ΔW is the merged policy minus the published W0, also for methods that begin with
another split of W0 (PiSSA, MiLoRA). At one shared learning rate it differs between methods by orders of magnitude, so a ranking
of methods is confounded with it.

vLLM samples and evaluates with weights in bfloat16. Published weights have bfloat16 values, so an update smaller than half a
step of this format is rounded away, and one of small reach is mostly lost there, while the trainer computes with all of it.
"""

import hashlib
import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from rlvr_sweeps.training.methods.merging import policy_weights
from rlvr_sweeps.training.models import PublishedWeights


def reach(model: Any, published: PublishedWeights) -> tuple[dict[str, float], dict[str, float]]:
    """Return ‖ΔW‖/‖W0‖ and ‖bf16(W) − W‖/‖ΔW‖ with W = W0 + ΔW (Frobenius norms), by kind of layer and for `all`.

    The norms are over all layers of a kind, by the layers' name. The second quotient is 0 where sampling in bfloat16 loses
    nothing of the update and about 1 where it loses all; kinds of layers that did not move are left out of it.
    """
    moved: dict[str, float] = defaultdict(float)
    size: dict[str, float] = defaultdict(float)
    lost: dict[str, float] = defaultdict(float)
    for name, weight in policy_weights(model):
        if name not in published:  # tied to another tensor, which is published
            continue
        origin, present = published[name], weight.detach().float().cpu()
        kind = name.split(".")[-2]
        for total, value in ((moved, present - origin), (size, origin), (lost, present.bfloat16().float() - present)):
            square = float(value.double().square().sum())
            total[kind] += square
            total["all"] += square
    kinds = sorted(size)
    return (
        {kind: math.sqrt(moved[kind] / size[kind]) for kind in kinds},
        {kind: math.sqrt(lost[kind] / moved[kind]) for kind in kinds if moved[kind]},
    )


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
