"""The policy's weights as a plain model would hold them: merged in float32, cast once, the base untouched.

Merging in place and unmerging afterwards, as is usual, rounds a bfloat16 base a little at every step; here each adapted
layer's own tensors are put back as they were, so the base is bit-identical after any number of syncs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from rlvr_sweeps import patches

BASE = "base_model.model."  # where PEFT puts the model it adapts; beside it stand parameters that layers share


def tuner_layers(model: torch.nn.Module) -> dict[str, Any]:
    """Every adapted layer, by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def own_tensors(layer: Any) -> dict[str, torch.nn.Parameter]:
    return dict(layer.get_base_layer().named_parameters(recurse=False))


@torch.no_grad()
def merged_tensors(layer: Any) -> dict[str, Tensor]:
    """The layer's effective weight (and bias), in the base's dtype, whatever autocast is on; the layer is left as it was."""
    if isinstance(layer, LNTuningLayer):  # a copy of the norm, not a change to it
        tuned = layer.ln_tuning_layers[layer.active_adapters[0]]
        return {key: value.data for key, value in tuned.named_parameters(recurse=False)}
    parameters = own_tensors(layer)
    originals = {key: parameter.data for key, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.data = parameter.data.to(torch.float32, copy=True)
        with torch.autocast(next(iter(originals.values())).device.type, enabled=False):
            layer.merge(safe_merge=False)
        return {key: parameter.data.to(originals[key].dtype) for key, parameter in parameters.items()}
    finally:
        for key, parameter in parameters.items():
            parameter.data = originals[key]
        patches.forget_merge(layer)


@contextmanager
def merged(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model's forward pass uses merged weights and no adapter; afterwards it is bit for bit what it was.

    Holds the merged and the original weights of the adapted layers at once.
    """
    layers = [layer for layer in tuner_layers(model).values() if not isinstance(layer, LNTuningLayer)]
    originals = []
    try:
        for layer in layers:
            effective, parameters = merged_tensors(layer), own_tensors(layer)
            originals.append((layer, {key: parameter.data for key, parameter in parameters.items()}))
            for key, parameter in parameters.items():
                parameter.data = effective[key]
            layer.merged_adapters.extend(layer.active_adapters)
        yield
    finally:
        for layer, tensors in originals:
            for key, parameter in own_tensors(layer).items():
                parameter.data = tensors[key]
            patches.forget_merge(layer)


def plain_name(name: str) -> str:
    """A parameter's name in the model that was adapted."""
    return name.removeprefix(BASE).replace(".base_layer.", ".")


def policy_weights(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name in the plain model, tensor) of every weight of the policy, one layer's merge in memory at a time."""
    layers = tuner_layers(model)
    for name, layer in layers.items():
        for key, tensor in merged_tensors(layer).items():
            yield plain_name(f"{name}.{key}"), tensor
    inside, of_base = tuple(f"{name}." for name in layers), BASE if layers else ""
    for name, parameter in model.named_parameters():
        if name.startswith(of_base) and not name.startswith(inside):
            yield plain_name(name), parameter.data
