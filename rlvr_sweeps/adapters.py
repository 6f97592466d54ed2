"""A method attached to a model, and its optimizer: PEFT's own where PEFT has it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import peft
import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import set_seed

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.sync import tuner_layers


def attach(model: Any, method: Mapping[str, Any], seed: int) -> Any:
    """`model` with the method's trainable parameters; `method` is the resolved conf/peft file. `seed` fixes random parts."""
    if method["trains"] == "everything":
        return model.requires_grad_(True)
    set_seed(seed)
    refuse_large_rank(model, method["config"])
    try:
        adapted = peft.get_peft_model(model, peft.get_peft_config(dict(method["config"])))
    except ValueError as error:
        if "target_modules" in str(error) or "not found in the base model" in str(error):
            raise Refused(f"peft={method['name']} matches no layer of this model: {error}") from error
        raise
    if method["initialisation"]:
        INITIALISATIONS[method["initialisation"]](adapted)
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(is_trained(name, method))
    return adapted


def is_trained(name: str, method: Mapping[str, Any]) -> bool:
    """Whether the method's file declares the parameter of this name as trained."""
    return any(part in name.split(".") for part in method["trained"])


def refuse_large_rank(model: Any, config: Mapping[str, Any]) -> None:
    """Raise Refused where the rank exceeds the smaller side of a target layer: an SVD has no more directions."""
    rank, targets = config.get("r", config.get("init_r")), config.get("target_modules", ())
    if rank is None:
        return
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in targets:
            side = min(module.in_features, module.out_features)
            if rank > side:
                raise Refused(
                    f"rank={rank} exceeds {name}, which is {module.out_features} × {module.in_features}: the largest rank "
                    f"possible there is {side}."
                )


@torch.no_grad()
def start_from_minor_components(adapted: Any) -> None:
    """MiLoRA: B·A takes the r smallest singular triplets of W, the frozen weight keeps the rest; the function is unchanged."""
    for layer in tuner_layers(adapted).values():
        (adapter,) = layer.active_adapters
        weight = layer.get_base_layer().weight
        rank, scaling = layer.r[adapter], layer.scaling[adapter]
        tall = weight.T if weight.shape[0] < weight.shape[1] else weight  # the faster orientation, 3.5 times
        u, s, vh = torch.linalg.svd(tall.double(), full_matrices=False)
        u, s, vh = u[:, -rank:], s[-rank:], vh[-rank:]
        if tall is not weight:
            u, vh = vh.T, u.T
        root = (s / scaling).sqrt()
        a, b = root[:, None] * vh, u * root
        layer.lora_A[adapter].weight.copy_(a)
        layer.lora_B[adapter].weight.copy_(b)
        weight.copy_(weight.double() - scaling * (b @ a))


INITIALISATIONS: dict[str, Callable[[Any], None]] = {"minor_singular": start_from_minor_components}


def expected_scaling(method: Mapping[str, Any]) -> float | None:
    """α/r, or α/√r for rsLoRA; None for methods without such a factor."""
    config = method["config"]
    if "lora_alpha" not in config or "r" not in config:
        return None
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))


def loraplus_optimizer(model: Any, ratio: float, optimizer: type, lr: float, **settings: Any) -> torch.optim.Optimizer:
    """PEFT's LoRA+ parameter groups: B learns `ratio` times faster than everything else."""
    weight_decay = settings.pop("weight_decay", 0.0)
    return create_loraplus_optimizer(
        model, optimizer, lr=lr, loraplus_lr_ratio=ratio, loraplus_weight_decay=weight_decay, **settings
    )
