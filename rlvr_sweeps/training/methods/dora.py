"""DoRA's row norms ‖W + s·BA‖ from the factors, without computing BA.

PEFT computes BA, adds it to W and takes norms, in every layer and forward pass. Of each row,
‖W + s·BA‖² = ‖W‖² + 2s·⟨B, W·Aᵀ⟩ + s²·⟨B, B·(A·Aᵀ)⟩, where ‖W‖² is computed once: the cost of `rank` additional tokens.
"""

from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from torch import Tensor, nn

from rlvr_sweeps import patches


class FactoredDora(DoraLinearLayer):
    """PEFT's DoRA of a linear layer, Eq. (5) of Liu et al. 2024, with the norm in float32 also under autocast."""

    _cached: tuple[tuple[int, int], Tensor] | None = None  # (identity of the weight, squared norms of its rows)

    def forward(
        self, x: Tensor, *, lora_A: nn.Linear, lora_B: nn.Linear, scaling: float, base_layer: nn.Linear,  # noqa: N803 - PEFT's
        base_result: Tensor | None = None, adapter_name: str = "default",
    ) -> Tensor:  # fmt: skip
        """Return what the adapter adds to the base layer's output, (…, out); as in PEFT, the norm has no gradient."""
        norm = self.norm(base_layer.weight, lora_A.weight, lora_B.weight, scaling)
        scale = (self.weight / norm).view(1, -1)
        if base_result is None:
            base_result = nn.functional.linear(x, base_layer.weight.to(x.dtype))
        elif base_layer.bias is not None:
            base_result = base_result - base_layer.bias
        return (scale - 1) * base_result + (scale * scaling) * lora_B(lora_A(x))

    @torch.no_grad()
    def norm(self, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        """Return the norms of the rows of W + s·BA, shape (out,)."""
        with torch.autocast(weight.device.type, enabled=False):
            a, b = a.float(), b.float()
            squares = self.squares(weight)
            crossed = (b * (weight.float() @ a.T)).sum(1)
            added = (b * (b @ (a @ a.T))).sum(1)
            return (squares + 2 * scaling * crossed + scaling**2 * added).clamp(min=0).sqrt()

    def squares(self, weight: Tensor) -> Tensor:
        """Return ‖W‖² of each row, shape (out,); cached until W is another tensor or is written to."""
        key = (weight.data_ptr(), weight._version)
        if self._cached is None or self._cached[0] != key:
            self._cached = key, weight.float().square().sum(1)
        return self._cached[1]


def factor_norms(model: Any) -> None:
    """Make every DoRA layer compute its norm from the factors, except where the weight is quantised or of a Conv1D."""

    for layer in model.modules():
        vectors = getattr(layer, "lora_magnitude_vector", None) or {}
        base = getattr(layer, "base_layer", None)
        for vector in vectors.values():
            if type(vector) is DoraLinearLayer and type(base) is nn.Linear and not vector.fan_in_fan_out:
                patches.change_class(vector, FactoredDora)
