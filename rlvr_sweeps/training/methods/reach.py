"""How far training moved the weights, and that it moved nothing it should not: measured against the model as published.

Reach is ‖ΔW‖/‖W0‖ per kind of layer, with ΔW the merged policy minus the pretrained W0, also where a method starts from
another split of W0 (PiSSA, MiLoRA). At one shared learning rate it differs between methods by orders of magnitude, and a
ranking is confounded with it.
"""

import hashlib
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rlvr_sweeps.training.methods.merging import policy_weights


class PublishedWeights:
    """A checkpoint's tensors by name, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self.file_of: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as content:
                self.file_of |= dict.fromkeys(content.keys(), file)

    def __contains__(self, name: str) -> bool:
        return name in self.file_of

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.file_of[name], framework="pt") as content:
            return content.get_tensor(name).float()


def reach(model: Any, published: PublishedWeights) -> dict[str, float]:
    """‖ΔW‖/‖W0‖ (Frobenius) of all layers of a kind together, by the layer's name, and of everything as `all`."""
    moved: dict[str, float] = defaultdict(float)
    size: dict[str, float] = defaultdict(float)
    for name, weight in policy_weights(model):
        if name not in published:  # tied to another that is there
            continue
        origin = published[name]
        kind = name.split(".")[-2]
        for key in (kind, "all"):
            moved[key] += float((weight.detach().float().cpu() - origin).double().square().sum())
            size[key] += float(origin.double().square().sum())
    return {key: math.sqrt(moved[key] / size[key]) for key in sorted(size)}


def frozen_digests(model: Any) -> dict[str, str]:
    """A hash of every tensor that must not move."""
    frozen = ((name, parameter) for name, parameter in model.named_parameters() if not parameter.requires_grad)
    return {name: tensor_digest(parameter) for name, parameter in frozen}


def tensor_digest(tensor: Tensor) -> str:
    bits = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(bits.numpy().data).hexdigest()


def changed(before: dict[str, str], model: Any) -> list[str]:
    """The names of frozen tensors that are not what they were."""
    after = frozen_digests(model)
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
