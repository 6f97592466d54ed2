"""Dropout on the CPU from uniform numbers, which torch draws faster there than single bits.

Same distribution, same generator, hence resumed bit for bit; other draws than nn.Dropout's. GPUs have a kernel of their own.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """nn.Dropout; on the CPU from uniform numbers, in float32 whatever the input's type, so that `p` is what was asked."""

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        if input.device.type != "cpu" or not self.training or not 0 < self.p < 1:
            return super().forward(input)
        kept = torch.rand(input.shape, dtype=torch.float32).ge_(self.p).div_(1 - self.p)
        return input * kept.to(input.dtype)


def use_faster_dropout(model: Any) -> None:
    """Give every nn.Dropout of `model` the faster way."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
