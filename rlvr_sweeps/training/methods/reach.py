"""Measure how far training moved the weights (the reach), and check that frozen tensors did not move.

Reach is ‖ΔW‖/‖W0‖ per kind of layer, where ΔW is the merged policy minus the published W0, also for methods that begin with
another split of W0 (PiSSA, MiLoRA). At one shared learning rate it differs between methods by orders of magnitude, so a ranking
of methods is confounded with it.
"""

import hashlib
import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from rlvr_sweeps.training.methods.merging import policy_weights
from rlvr_sweeps.training.models import PublishedWeights


def reach(model: Any, published: PublishedWeights) -> dict[str, float]:
    """Return ‖ΔW‖/‖W0‖ (Frobenius norms) over all layers of a kind, by the layers' name, and over everything as `all`."""
    moved: dict[str, float] = defaultdict(float)
    size: dict[str, float] = defaultdict(float)
    for name, weight in policy_weights(model):
        if name not in published:  # tied to another tensor, which is published
            continue
        origin = published[name]
        kind = name.split(".")[-2]
        for key in (kind, "all"):
            moved[key] += float((weight.detach().float().cpu() - origin).double().square().sum())
            size[key] += float(origin.double().square().sum())
    return {key: math.sqrt(moved[key] / size[key]) for key in sorted(size)}


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
