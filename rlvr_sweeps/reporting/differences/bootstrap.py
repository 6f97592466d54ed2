"""Paired differences between two arms on the same problems, with confidence intervals, p-values and Holm's correction.

An arm is a list of benchmarks; a benchmark is an array of p̂, shape (seeds, problems): the share of right samples of each
problem, by training run. Both arms are evaluated on the same problems, so differences are paired by problem. Three sources of
variation count: problems (a second test set would have different ones), training seeds, and samples.

The interval is a hierarchical bootstrap. Problems are resampled within their benchmark, equally for both arms; the
samples of a problem are not resampled, so that their noise is counted once (Davison & Hinkley 1997, Sec. 3.8: resampling
samples within resampled problems would count it twice). Training seeds are resampled within an arm, shrunk by the share of
their spread that sampling noise explains. With few units, deviations are widened to the quantile of Student's t.
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
    """Accuracy of arm A minus that of arm B: value, interval (at 95 %, or at the level given), two-sided p."""

    value: float
    low: float
    high: float
    p: float


def difference(a: Arm, b: Arm, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Difference:
    """Return the paired difference, averaged over benchmarks. Raise ValueError unless both arms have the same problems.

    `level`: the probability that the interval contains the true difference; p does not depend on it.
    With one training seed in an arm, its spread over seeds is unknown and left out: the interval then compares two trained
    models, not their methods. The interval of two accuracies ends at -1 and 1.
    """
    from scipy import stats  # its import takes half a second

    if [table.shape[1] for table in a] != [table.shape[1] for table in b] or not a:
        raise ValueError("both arms need the same problems of the same benchmarks")
    count = len(a)
    gaps = [first.mean(0) - second.mean(0) for first, second in zip(a, b, strict=True)]
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
    widening = stretch if level == 0.95 else float(stats.t.ppf((1 + level) / 2, degrees) / stats.norm.ppf((1 + level) / 2))
    ends = value - np.quantile((by_problem + by_seed) * widening, [(1 + level) / 2, (1 - level) / 2])
    largest = max(1.0, *(float(table.max()) for table in (*a, *b)))  # of a sum of two rows' accuracies: 2
    low, high = np.clip(ends, -largest, largest)
    p = (1 + np.count_nonzero(np.abs(by_sign + by_seed * stretch) >= abs(value) - 1e-12)) / (1 + draws)
    return Difference(value, float(low), float(high), float(p))


@dataclass(frozen=True)
class Noise:
    """Deviations to resample, the variance of their mean, and the degrees of freedom of that variance."""

    deviations: Array
    variance: float
    freedom: float


def problem_noise(gap: Array) -> Noise:
    """Return the deviations of one benchmark's paired differences, scaled so that resampled means have unbiased variance."""
    n = len(gap)
    if n < 2:
        return Noise(np.zeros(n), 0.0, 1.0)
    deviations = (gap - gap.mean()) * np.sqrt(n / (n - 1))
    return Noise(deviations, float((deviations**2).sum() / n**2), n - 1)


def seed_noise(arm: Arm) -> Noise | None:
    """Return the deviations of an arm's training seeds, less what noise within problems explains; None for one seed.

    Two-way layout without replication: the variance of the seeds' means is that of the seeds plus residual/problems.
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
    unexplained = max(0.0, 1 - explained / spread) if spread > 0 else 0.0
    deviations = (means - means.mean()) * np.sqrt(unexplained * seeds / (seeds - 1))
    return Noise(deviations, float((deviations**2).sum() / seeds**2), seeds - 1)


def draw_seeds(deviations: Array, draws: int, rng: np.random.Generator) -> Array:
    """Return the means of `draws` resamples of the seeds' deviations."""
    return deviations[rng.integers(0, len(deviations), (draws, len(deviations)))].mean(1)


@cache
def resampling(n: int, draws: int, seed: int, index: int) -> NDArray[np.float32]:
    """Return (draws, n): how often each problem is drawn, divided by n; equal for all comparisons of benchmark `index`."""
    rng = np.random.default_rng([seed, n, index])
    indices = rng.integers(0, n, (draws, n)) + np.arange(draws)[:, None] * n
    return (np.bincount(indices.ravel(), minlength=draws * n).reshape(draws, n) / n).astype(np.float32)


@cache
def signs(n: int, draws: int, seed: int, index: int) -> NDArray[np.float32]:
    """Return (draws, n): random signs divided by n; under the null hypothesis a difference is as likely as its negative."""
    rng = np.random.default_rng([seed, n, index, 2])
    return ((rng.integers(0, 2, (draws, n), dtype=np.int8) * 2 - 1) / n).astype(np.float32)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values with Holm's step-down adjustment (1979) for all comparisons together."""
    order = np.argsort(p_values)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
