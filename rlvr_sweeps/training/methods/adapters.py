"""Attach a method (a file of conf/peft) to a model: its adapter, initialisation, trained parameters, dropout and optimizer.

PEFT's implementation is used where it has one.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import peft
import torch
from peft import initialize_lora_eva_weights
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn
from transformers import set_seed

from rlvr_sweeps import patches
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.training.methods.dora import factor_norms
from rlvr_sweeps.training.methods.merging import tuner_layers
from rlvr_sweeps.training.methods.svd import Side, cached_triplets


def attach(
    model: Any,
    method: Mapping[str, Any],
    seed: int,
    model_key: str | None = None,
    prompts: Sequence[Sequence[int]] = (),
    start: Mapping[str, Tensor] | None = None,
) -> Any:
    """Return `model` with the method's trainable parameters; `method` is the resolved conf/peft file.

    `seed` fixes the random initialisation. `model_key` identifies the model's exact weights: with it, singular triplets are
    stored for other runs. `prompts` are training prompts as token ids, for methods that start from activations or gradients.
    `start` are the run's trainable parameters at step 0 where they are stored: LoRA-GA takes them instead of new gradients,
    which a GPU does not reproduce to the bit. Raises Refused where the method matches no layer of the model.
    """
    if method["trains"] == "everything":
        return model.requires_grad_(True)
    set_seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unsupported layer type")  # LN tuning on any RMSNorm
            adapted = peft.get_peft_model(model, peft.get_peft_config(dict(method["config"])))
    except ValueError as error:
        if "target_modules" in str(error) or "not found in the base model" in str(error):
            raise Refused(
                f"peft={method['name']} matches no layer of this model: {error}. Set target_modules in conf/peft/ to its "
                "layers, or choose another peft."
            ) from error
        raise
    if method["initialisation"] == "activations":
        start_from_activations(adapted, prompts)
    elif method["initialisation"] == "gradients":
        start_from_gradients(adapted, prompts, start)
    elif method["initialisation"] == "residual":
        subtract_start(adapted)
    elif method["initialisation"]:
        start_from_singular_triplets(adapted, method["initialisation"], model_key)
    if method.get("factored_norm", True):
        factor_norms(adapted)
    use_faster_dropout(adapted)
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(is_trained_parameter(name, method))
    return adapted


def is_trained_parameter(name: str, method: Mapping[str, Any]) -> bool:
    """Return whether the method's file declares the parameter of this name as trained."""
    return any(part in name.split(".") for part in method["trained"])


def has_residual(method: Mapping[str, Any]) -> bool:
    """Return whether the frozen weights are W0 minus the adapter's first update: the adapter on W0 is not the policy then."""
    return bool(method["not_the_base_in_training"]) or method["initialisation"] == "residual"


@torch.no_grad()
def subtract_start(adapted: Any) -> None:
    """Subtract each layer's first update from its frozen weight, so that the policy at step 0 is the base model.

    The random starts of Uni-LoRA and VB-LoRA give an update that is small and not zero; a start at zero has no gradient.
    """
    for layer in tuner_layers(adapted).values():
        weight = layer.get_base_layer().weight
        if not weight.is_meta:
            weight.copy_(weight.double() - layer.get_delta_weight("default").double())


@torch.no_grad()
def start_from_singular_triplets(adapted: Any, side: Side, model_key: str | None) -> None:
    """Set B·A to r singular triplets of W and the frozen weight to the rest; the function of the model does not change.

    PiSSA takes the largest triplets (Meng et al. 2024, Eq. 2-4), MiLoRA the smallest (Wang et al. 2024, Eq. 3-5):
    A = √(S/s)·Vᵀ, B = U·√(S/s), where s is the adapter's scale.
    """
    layers = tuner_layers(adapted)
    weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
    (rank,) = {layer.r["default"] for layer in layers.values()}
    for name, (u, s, vh) in cached_triplets(weights, rank, side, model_key).items():
        layer, weight = layers[name], weights[name]
        scaling = layer.scaling["default"]
        root = (s.double() / scaling).sqrt().to(weight.device)
        a, b = root[:, None] * vh.to(weight.device), u.to(weight.device) * root
        layer.lora_A["default"].weight.copy_(a)
        layer.lora_B["default"].weight.copy_(b)
        weight.copy_(weight.double() - scaling * (b @ a))


def start_from_activations(adapted: Any, prompts: Sequence[Sequence[int]]) -> None:
    """Initialise by PEFT's EVA: an incremental SVD of every layer's inputs over `prompts`, until the directions converge."""
    device = next(adapted.parameters()).device
    if device.type == "meta":
        return  # the parameters are only counted
    batches = prompt_batches(prompts, device)
    adapted.eval()
    with torch.no_grad():
        initialize_lora_eva_weights(adapted, batches, gather_distributed_inputs=False, show_progress_bar=False)
    adapted.train()


def start_from_gradients(
    adapted: Any, prompts: Sequence[Sequence[int]], start: Mapping[str, Tensor] | None, gamma: float = 16.0
) -> None:
    """Set A and B to singular vectors of the gradient of each weight, and the frozen weight to W - s·BA, s the adapter's scale.

    LoRA-GA (Wang et al. 2024, arXiv 2407.05000, Theorem 3.2 and Eq. 10): of the 2r largest triplets, A has the right vectors of
    the first r and B the left vectors of the others, both times out^(1/4) / √γ. PEFT 0.21.2 multiplies B by the gradient's
    singular values as well and does not scale A, so it is not used. The gradient is that of the next-token loss over `prompts`:
    a gradient of rewards would need the first rollouts. `start`: see `attach`.
    """
    layers = tuner_layers(adapted)
    weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
    if next(iter(weights.values())).is_meta:
        return
    if not start:
        adapted.eval().requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        for batch in prompt_batches(prompts, next(adapted.parameters()).device):
            adapted(**batch, labels=batch["input_ids"]).loss.backward()
        adapted.train()
    for name, layer in layers.items():
        a, b, weight = layer.lora_A["default"].weight, layer.lora_B["default"].weight, weights[name]
        with torch.no_grad():
            if start:
                a.copy_(start[f"{name}.lora_A.default.weight"])
                b.copy_(start[f"{name}.lora_B.default.weight"])
            else:
                assert weight.grad is not None
                rank, scale = layer.r["default"], weight.shape[0] ** 0.25 / math.sqrt(gamma)
                left, _, right = torch.svd_lowrank(weight.grad.float(), q=min(4 * rank, *weight.shape), niter=4)
                a.copy_(scale * right[:, :rank].T)
                b.copy_(scale * left[:, rank : 2 * rank])
                weight.grad = None
            weight.copy_(weight.double() - layer.scaling["default"] * (b.double() @ a.double()))


def prompt_batches(prompts: Sequence[Sequence[int]], device: torch.device, rows: int = 8) -> list[dict[str, Tensor]]:
    """Return the prompts as batches of `rows`; those of a batch are cut to its shortest, since padding would count as data."""
    if not prompts:
        raise ValueError("This method starts from training prompts, and `prompts` is empty.")
    batches = []
    for first in range(0, len(prompts), rows):
        batch = prompts[first : first + rows]
        width = min(map(len, batch))
        ids = torch.tensor([row[-width:] for row in batch], device=device)
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return batches


def expected_scaling(method: Mapping[str, Any]) -> float | None:
    """Return the adapter's scale, α/r or for rsLoRA α/√r; None for methods without such a factor."""
    config = method["config"]
    alpha = config.get("lora_alpha", config.get("alpha"))
    if alpha is None or "r" not in config:
        return None
    rank = config["r"]
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def loraplus_optimizer(model: Any, ratio: float, optimizer: type, lr: float, **settings: Any) -> torch.optim.Optimizer:
    """Return an optimizer with PEFT's LoRA+ parameter groups: the learning rate of B is `ratio` times that of the others."""
    weight_decay = settings.pop("weight_decay", 0.0)
    return create_loraplus_optimizer(
        model, optimizer, lr=lr, loraplus_lr_ratio=ratio, loraplus_weight_decay=weight_decay, **settings
    )


class Dropout(nn.Dropout):
    """nn.Dropout, faster on the CPU: it compares uniform float32 numbers with `p`.

    They are float32 for every input type, since bfloat16 numbers are too coarse for an exact `p`.
    """

    def forward(self, input: Tensor) -> Tensor:  # the parameter's name is torch's
        if input.device.type != "cpu" or not self.training or not 0 < self.p < 1:
            return super().forward(input)
        kept = torch.rand(input.shape, dtype=torch.float32).ge_(self.p).div_(1 - self.p)
        return input * kept.to(input.dtype)


def use_faster_dropout(model: Any) -> None:
    """Replace every nn.Dropout of `model` by the faster class."""

    for module in model.modules():
        if type(module) is nn.Dropout:
            patches.change_class(module, Dropout)
