"""Round the policy's weights to bfloat16 for the sampler: to the nearest value, or at random with an exact mean.

Published weights have bfloat16 values, so W + ΔW rounded to the nearest value is W again wherever |ΔW| is below half a step of
the format: a method whose updates are small is sampled and evaluated as the base model. Rounded up or down at random, with
probabilities by the distance, the mean over the roundings is W + ΔW for every method and every size of the update.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlvr_sweeps.training.seeded_sampling import seed_of

Rounding = Callable[[str, Tensor], Tensor]  # (name in the plain model, weight) -> weight with bfloat16 values, same dtype

LOW_BITS = 16  # a bfloat16 number is the upper half of a float32 number


def rounding_of(weights: str, *seed_parts: object) -> Rounding | None:
    """Return the rounding that a value of `rollout.weights` or `evaluation.weights` names; None for float32.

    `seed_parts` and the tensor's name seed the random rounding, so that all processes, and a resumed run, hold equal weights
    (on one kind of device: the generators of CPU and GPU draw different numbers).
    """
    if weights == "stochastic":
        return lambda name, weight: stochastically_rounded(weight, seed_of(*seed_parts, name))
    return (lambda _, weight: weight.bfloat16().to(weight.dtype)) if weights == "bfloat16" else None


def stochastically_rounded(weight: Tensor, seed: int) -> Tensor:
    """Return `weight` with each value rounded to one of the two nearest bfloat16 values, so that its mean is the value itself.

    Values that bfloat16 has are returned unchanged. The result has the dtype of `weight`.
    """
    bits = weight.detach().float().contiguous().view(torch.int32)
    generator = torch.Generator(weight.device).manual_seed(seed)
    noise = torch.randint(0, 1 << LOW_BITS, bits.shape, generator=generator, dtype=torch.int32, device=weight.device)
    rounded: Tensor = noise.add_(bits).bitwise_and_(-(1 << LOW_BITS)).view(torch.float32).to(weight.dtype)
    return rounded
