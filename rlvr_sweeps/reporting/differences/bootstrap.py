"""Differences between two arms on the same problems, with what they are worth: intervals, p-values, Holm's correction.

An arm is a list of benchmarks; a benchmark is an array of p̂, shape (seeds, problems): the share of right samples of each
problem, by training run. Both arms answer the same problems, so differences are paired by problem. Three things vary:
problems (the next exam asks others), training seeds, and samples.

The interval is a hierarchical bootstrap. Problems are resampled within their benchmark, the same ones for both arms; a
problem brings its own samples along, whose noise is so counted once (Davison & Hinkley 1997, Sec. 3.8: resampling samples
within resampled problems would count it twice). Training seeds are resampled within an arm, shrunk by the share of their
spread that the sampling noise explains. Deviations are widened from the few units there are to what Student's t asks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Arm = Sequence[Array]
DRAWS = 10_000
Z = 1.959964  # 0.975 quantile of the normal distribution


@dataclass(frozen=True)
class Difference:
    """Of arm A over arm B, in accuracy: value, 95 % interval, two-sided p."""

    value: float
    low: float
    high: float
    p: float


def difference(a: Arm, b: Arm, draws: int = DRAWS, seed: int = 0) -> Difference:
    """Mean over benchmarks of the paired difference. Raises ValueError where the arms do not answer the same problems.

    With one training seed in an arm its seed-to-seed spread is unknown and left out: the interval then speaks of these
    two trained models, not of their methods.
    """
    from scipy import stats  # half a second, for those who compare

    if [one.shape[1] for one in a] != [other.shape[1] for other in b] or not a:
        raise ValueError("both arms need the same problems of the same benchmarks")
    count = len(a)
    gaps = [one.mean(0) - other.mean(0) for one, other in zip(a, b, strict=True)]
    value = float(np.mean([gap.mean() for gap in gaps]))
    problems = [problem_noise(gap) for gap in gaps]
    seeds = [noise for arm in (a, b) if (noise := seed_noise(arm)) is not None]
    variances = np.array([noise.variance / count**2 for noise in problems] + [noise.variance for noise in seeds])
    freedom = np.array([noise.freedom for noise in problems + seeds])
    total = variances.sum()
    degrees = total**2 / (variances**2 / freedom).sum() if total > 0 else np.inf  # Welch, Satterthwaite
    stretch = float(stats.t.ppf(0.975, degrees)) / Z
    rng = np.random.default_rng(seed + 1)
    by_seed = sum((draw_seeds(noise.deviations, draws, rng) for noise in seeds), np.zeros(draws))
    by_problem, by_sign = np.zeros(draws), np.zeros(draws)
    for index, (gap, noise) in enumerate(zip(gaps, problems, strict=True)):
        by_problem += resampling(len(gap), draws, seed, index) @ noise.deviations / count
        by_sign += signs(len(gap), draws, seed, index) @ gap / count
    low, high = value - np.quantile((by_problem + by_seed) * stretch, [0.975, 0.025])
    p = (1 + np.count_nonzero(np.abs(by_sign + by_seed * stretch) >= abs(value) - 1e-12)) / (1 + draws)
    return Difference(value, float(low), float(high), float(p))


@dataclass(frozen=True)
class Noise:
    """What is resampled, the variance of its mean, and the degrees of freedom that is known with."""

    deviations: Array
    variance: float
    freedom: float


def problem_noise(gap: Array) -> Noise:
    """Deviations of one benchmark's paired differences, scaled so that their resampled mean has the unbiased variance."""
    n = len(gap)
    if n < 2:
        return Noise(np.zeros(n), 0.0, 1.0)
    deviations = (gap - gap.mean()) * np.sqrt(n / (n - 1))
    return Noise(deviations, float((deviations**2).sum() / n**2), n - 1)


def seed_noise(arm: Arm) -> Noise | None:
    """Deviations of an arm's training seeds, without the part that noise within problems explains; None for one seed.

    Two-way layout without replication: the spread of the seeds' means is the seeds' own plus residual/problems.
    """
    seeds = arm[0].shape[0]
    if seeds < 2:
        return None
    means = np.mean([table.mean(1) for table in arm], axis=0)
    spread = float(means.var(ddof=1))
    explained = 0.0
    for table in arm:
        n = table.shape[1]
        if n > 1:
            residuals = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
            explained += float((residuals**2).sum() / ((seeds - 1) * (n - 1))) / n / len(arm) ** 2
    own = max(0.0, 1 - explained / spread) if spread > 0 else 0.0
    deviations = (means - means.mean()) * np.sqrt(own * seeds / (seeds - 1))
    return Noise(deviations, float((deviations**2).sum() / seeds**2), seeds - 1)


def draw_seeds(deviations: Array, draws: int, rng: np.random.Generator) -> Array:
    return deviations[rng.integers(0, len(deviations), (draws, len(deviations)))].mean(1)


@cache
def resampling(n: int, draws: int, seed: int, index: int) -> NDArray[np.float32]:
    """(draws, n): how often each problem is drawn, over n. The same for every comparison of the benchmark at `place`."""
    rng = np.random.default_rng([seed, n, index])
    indices = rng.integers(0, n, (draws, n)) + np.arange(draws)[:, None] * n
    return (np.bincount(indices.ravel(), minlength=draws * n).reshape(draws, n) / n).astype(np.float32)


@cache
def signs(n: int, draws: int, seed: int, index: int) -> NDArray[np.float32]:
    """(draws, n): random signs over n; under the null hypothesis a paired difference is as likely as its negative."""
    rng = np.random.default_rng([seed, n, index, 2])
    return ((rng.integers(0, 2, (draws, n), dtype=np.int8) * 2 - 1) / n).astype(np.float32)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): p-values that hold for all the comparisons together."""
    order = np.argsort(p_values)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
