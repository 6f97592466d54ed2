"""The states of the random number generators that training draws from, and a context that leaves them as they were.

Dropout draws from torch's generator, on a GPU from CUDA's. vLLM sets all of them to its own seed, in the trainer's process.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """The states of the generators of Python, NumPy, torch and the current CUDA device."""

    python: Any
    numpy: Any
    torch: Tensor
    cuda: Tensor | None
    cuda_device: int | None

    @classmethod
    def now(cls) -> "RandomState":
        """Return the present states. Only the current CUDA device is read: a process trains on one."""
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        cuda = None if device is None else torch.cuda.get_rng_state(device)
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda, device)

    def restore(self) -> None:
        """Set all generators to these states."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda is not None and self.cuda_device is not None:
            torch.cuda.set_rng_state(self.cuda, self.cuda_device)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore all generators after the block, also where it raises."""
    state = RandomState.now()
    try:
        yield
    finally:
        state.restore()
