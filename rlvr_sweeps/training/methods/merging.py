"""The policy's weights with the adapter merged, under the names of the plain model.

Weights are merged in float32 and cast once. The usual way, to merge in place and to subtract the adapter afterwards, rounds a
bfloat16 base at every step; here the base's tensors are put back, so that it is bit-identical after any number of syncs.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from rlvr_sweeps import patches
from rlvr_sweeps.training.weight_rounding import Rounding

BASE = "base_model.model."  # PEFT's prefix of the adapted model; parameters that layers share have other names


def tuner_layers(model: torch.nn.Module) -> dict[str, Any]:
    """Return every adapted layer, by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def own_parameters(layer: Any) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of the base layer that an adapted layer wraps, by name."""
    return dict(layer.get_base_layer().named_parameters(recurse=False))


def tuned_norm(layer: Any) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of the copy of a norm that LN tuning trains; there is nothing to merge."""
    return dict(layer.ln_tuning_layers[layer.active_adapters[0]].named_parameters(recurse=False))


def unadapted(model: torch.nn.Module, layers: Collection[str]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield (name, parameter) of the policy's parameters outside of its adapted layers; parameters that are shared, once."""
    inside, of_base = tuple(f"{name}." for name in layers), BASE if layers else ""
    for name, parameter in model.named_parameters():
        if name.startswith(of_base) and not name.startswith(inside):
            yield name, parameter


@torch.no_grad()
def merged_tensors(layer: Any) -> dict[str, Tensor]:
    """Return the layer's effective weight (and bias) in the base's dtype, also under autocast; the layer does not change."""
    if isinstance(layer, LNTuningLayer):
        return {key: parameter.data for key, parameter in tuned_norm(layer).items()}
    parameters = own_parameters(layer)
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
def merged(model: torch.nn.Module, rounding: Rounding | None = None) -> Iterator[None]:
    """Use merged weights and no adapter in the model's forward pass inside; restore the model bit for bit afterwards.

    With `rounding`, every weight of the policy is rounded too. Memory holds the merged (and rounded) weights and the originals
    at the same time.
    """
    layers = tuner_layers(model)
    originals: list[tuple[torch.nn.Parameter, Tensor]] = []

    def use(parameter: torch.nn.Parameter, name: str, value: Tensor) -> None:
        originals.append((parameter, parameter.data))
        parameter.data = rounding(plain_name(name), value) if rounding else value

    try:
        for name, layer in layers.items():
            if isinstance(layer, LNTuningLayer):
                if rounding:
                    for key, parameter in tuned_norm(layer).items():
                        use(parameter, f"{name}.{key}", parameter.data)
                continue
            effective = merged_tensors(layer)
            for key, parameter in own_parameters(layer).items():
                use(parameter, f"{name}.{key}", effective[key])
            layer.merged_adapters.extend(layer.active_adapters)
        if rounding:
            for name, parameter in unadapted(model, layers):
                use(parameter, name, parameter.data)
        yield
    finally:
        for parameter, value in originals:
            parameter.data = value
        for layer in layers.values():
            if not isinstance(layer, LNTuningLayer):
                patches.forget_merge(layer)


def plain_name(name: str) -> str:
    """Return a parameter's name in the plain model."""
    return name.removeprefix(BASE).replace(".base_layer.", ".")


def policy_weights(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in the plain model, tensor) of every weight of the policy; one layer is merged at a time."""

    layers = tuner_layers(model)
    for name, layer in layers.items():
        for key, tensor in merged_tensors(layer).items():
            yield plain_name(f"{name}.{key}"), tensor
    for name, parameter in unadapted(model, layers):
        yield plain_name(name), parameter.data
