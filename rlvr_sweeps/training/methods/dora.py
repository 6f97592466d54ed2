"""DoRA's norm from its factors: ‖W + s·BA‖ row by row, without making BA.

PEFT makes the whole of BA, adds it to W and takes norms, in every layer and forward pass. Row by row
‖W + s·BA‖² = ‖W‖² + 2s·⟨B, W·Aᵀ⟩ + s²·⟨B, B·(A·Aᵀ)⟩, where ‖W‖² is computed once: as much work as rank more tokens.
"""

from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from torch import Tensor, nn

from rlvr_sweeps import patches


class FactoredDora(DoraLinearLayer):
    """PEFT's DoRA of a linear layer, Eq. (5) of Liu et al. 2024, with the norm in float32 whatever autocast is on."""

    _known: tuple[tuple[int, int], Tensor] | None = None  # of which weight, and the squared norms of its rows

    def forward(
        self, x: Tensor, *, lora_A: nn.Linear, lora_B: nn.Linear, scaling: float, base_layer: nn.Linear,  # noqa: N803 - PEFT's
        base_result: Tensor | None = None, adapter_name: str = "default",
    ) -> Tensor:  # fmt: skip
        """What the adapter adds to the base layer's output, (…, out), as PEFT has it; its gradient takes the norm as given."""
        norm = self.norm(base_layer.weight, lora_A.weight, lora_B.weight, scaling)
        scale = (self.weight / norm).view(1, -1)
        if base_result is None:
            base_result = nn.functional.linear(x, base_layer.weight.to(x.dtype))
        elif base_layer.bias is not None:
            base_result = base_result - base_layer.bias
        return (scale - 1) * base_result + (scale * scaling) * lora_B(lora_A(x))

    @torch.no_grad()
    def norm(self, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        """Norms of the rows of W + s·BA, shape (out,)."""
        with torch.autocast(weight.device.type, enabled=False):
            a, b = a.float(), b.float()
            squares = self.squares(weight)
            crossed = (b * (weight.float() @ a.T)).sum(1)
            added = (b * (b @ (a @ a.T))).sum(1)
            return (squares + 2 * scaling * crossed + scaling**2 * added).clamp(min=0).sqrt()

    def squares(self, weight: Tensor) -> Tensor:
        """‖W‖² of each row, computed again where W is another tensor or was written to."""
        key = (weight.data_ptr(), weight._version)
        if self._known is None or self._known[0] != key:
            self._known = key, weight.float().square().sum(1)
        return self._known[1]


def factor_norms(model: Any) -> None:
    """Give every DoRA layer its factored norm; PEFT's stays where a weight is stored otherwise (quantised, Conv1D)."""
    for layer in model.modules():
        vectors = getattr(layer, "lora_magnitude_vector", None) or {}
        base = getattr(layer, "base_layer", None)
        for vector in vectors.values():
            if type(vector) is DoraLinearLayer and type(base) is nn.Linear and not vector.fan_in_fan_out:
                patches.change_class(vector, FactoredDora)
