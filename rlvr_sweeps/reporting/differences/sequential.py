"""Looks at a claim after every further seed: differences with intervals that stay valid however often they are looked at.

A row's accuracy is known up to three sources of variation (bootstrap.py): problems, training seeds, samples. Of a contrast
Σ wᵢ·(accuracy of row i), the variance is F + Σ wᵢ²·vᵢ/nᵢ: F, from the problems, is the same at each look; vᵢ is the variance of
the accuracy over seeds and nᵢ the number of seeds. For two looks s < t, the covariance of the estimates is the variance of the
later one, which is the condition for group-sequential tests (Jennison & Turnbull 1999, Sec. 3.1; 11.2).

The chance of error α is spent over the looks (Lan & DeMets 1983; Kim & DeMets 1987): until a look at n seeds,
α·(n/most)^SPENDING is spent. The larger F is, the more alike are the looks, and the less do they cost: the critical values
depend on the estimated ratio F/V, V = Σ wᵢ²·vᵢ, where the smallest estimate so far is used, rounded down. The intervals of all
looks together then contain the true difference with probability 1 − α (repeated confidence intervals, Jennison & Turnbull
1989), also where looking stops for another reason.

Few seeds say little about vᵢ. Like the variances of genes in limma (Smyth 2004), those of the rows are moderated: each is
averaged with a common value, with a weight that follows from how much the rows' variances differ. Arrays may have leading
dimensions, so that bench/adaptive_seeds.py computes thousands of sweeps at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from rlvr_sweeps.reporting.differences.bootstrap import Array

FIRST_LOOK = 2  # seeds of each row: the smallest number with a spread
SPENDING = 1.0  # exponent of the error that is spent until a look; larger: later
RATIOS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)  # F/V with critical values of their own
NODES = 256  # of the numerical integration over the values at which looking went on
MOST_SEEDS = 12  # of a row, by default
LEAST_CHANCE = 0.02  # of deciding a claim, per further seed of its rows, below which they get none


def spent(seeds: int, most: int, alpha: float) -> float:
    """Return the error that may be spent until a look at `seeds` of at most `most` seeds."""
    return float(alpha * min(1.0, seeds / most) ** SPENDING)


@cache
def nominal_levels(most: int, alpha: float, ratio: float = 0.0, first: int = FIRST_LOOK) -> dict[int, float]:
    """Return by number of seeds, `first` to `most`, the two-sided error of the look that makes all looks' error `alpha`.

    `ratio`: F/V, where F + V/n is the variance of the estimate at n seeds. At each look the process of the estimates, as a
    Brownian motion at time 1/(ratio + 1/n), leaves the region in which looking goes on with the probability that is spent there
    (Armitage, McPherson & Rowe 1969).
    """
    levels: dict[int, float] = {}
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    values, density, before = np.zeros(1), np.ones(1), 0  # of the process where no look has stopped, times the weights
    for seeds in range(first, most + 1):
        time = 1 / (ratio + 1 / seeds)
        step = np.sqrt(time - (1 / (ratio + 1 / before) if before else 0.0))
        share = spent(seeds, most, alpha) - (spent(before, most, alpha) if before else 0.0)

        edge = float(optimize.brentq(excess_error, 1e-6, 20 * np.sqrt(time), args=(values, density, step, share)))
        inner = edge * nodes
        moved = np.exp(-0.5 * ((inner[:, None] - values) / step) ** 2) / (step * np.sqrt(2 * np.pi))
        density, values, before = edge * weights * (moved @ density), inner, seeds
        levels[seeds] = float(2 * special.ndtr(-edge / np.sqrt(time)))
    return levels


def excess_error(edge: float, values: Array, density: Array, step: float, share: float) -> float:
    """Return the probability that the process leaves (-edge, edge) with its next step, minus `share`."""
    outside = special.ndtr((-edge - values) / step) + special.ndtr((values - edge) / step)
    return float(density @ outside) - share


@cache
def level_table(most: int, alpha: float) -> tuple[tuple[float, ...], Array]:
    """Return the ratios for which there are nominal levels, and these: (ratios, seeds from 0 to `most`), 0 before any look.

    Ratios at which the steps between the last looks are too short for the numerical integration are left out.
    """
    ratios = tuple(ratio for ratio in RATIOS if most * (ratio * (most - 1) + 1) <= 1000)
    return ratios, np.array([
        [0.0] * FIRST_LOOK + list(nominal_levels(most, alpha, ratio).values()) for ratio in ratios
    ])  # fmt: skip


def nominal_level(seeds: Any, ratio: Any, most: int, alpha: float) -> Any:
    """Return the two-sided error of a look at `seeds` seeds; `ratio` F/V, the smallest of all looks until then.

    The ratio is rounded down, which makes the level smaller.
    """
    ratios, table = level_table(most, alpha)
    return table[np.searchsorted(ratios, ratio, side="right") - 1, seeds]


def moderated(variances: Array, freedom: Array) -> tuple[Array, Array]:
    """Return the rows' variances, moderated, and their degrees of freedom; shape (…, rows), rows of freedom 0 unchanged.

    The common value and its weight d₀ follow from mean and variance of log(variances) over the rows (Smyth 2004, Sec. 6.2). No
    row gets more degrees of freedom than all rows have together.
    """
    known = freedom > 0
    count = known.sum(-1, keepdims=True)
    safe_freedom = np.where(known, freedom, 1.0)
    positive = np.where(known & (variances > 0), variances, np.nan)
    with np.errstate(all="ignore"):
        floor = 1e-4 * np.nan_to_num(
            np.nanmax(np.where(np.isnan(positive), -np.inf, positive), axis=-1, keepdims=True), neginf=0.0
        )
    logs = np.log(np.maximum(np.where(known, variances, 1.0), np.maximum(floor, 1e-300)))
    centred = np.where(known, logs - special.digamma(safe_freedom / 2) + np.log(safe_freedom / 2), 0.0)
    mean = centred.sum(-1, keepdims=True) / np.maximum(count, 1)
    spread = (np.where(known, centred - mean, 0.0) ** 2).sum(-1, keepdims=True) / np.maximum(count - 1, 1)
    expected = np.where(known, special.polygamma(1, safe_freedom / 2), 0.0).sum(-1, keepdims=True) / np.maximum(count, 1)
    excess = spread - expected
    prior = np.where(excess > 0, 2 * inverse_trigamma(np.maximum(excess, 1e-6)), np.inf)  # d₀
    half = np.where(np.isfinite(prior), prior / 2, 1.0)
    common = np.exp(mean + np.where(np.isfinite(prior), special.digamma(half) - np.log(half), 0.0))
    pooled = np.where(known, freedom, 0.0).sum(-1, keepdims=True)
    weight = np.where(np.isfinite(prior), prior, 1e9)
    alone = count < 2
    blended = (weight * common + freedom * variances) / (weight + freedom)
    result = np.where(known & ~alone, blended, variances)
    return result, np.where(known & ~alone, np.minimum(weight + freedom, pooled), freedom)


def inverse_trigamma(values: Array) -> Array:
    """Return x with trigamma(x) = value, by Newton's method on 1/trigamma (Smyth 2004, Appendix)."""
    x = 0.5 + 1 / values
    for _ in range(8):
        trigamma = special.polygamma(1, x)
        x = x + trigamma * (1 - trigamma / values) / special.polygamma(2, x)
    return np.asarray(x)


@dataclass(frozen=True)
class Rows:
    """What looks need of the rows of a sweep, with the mean over benchmarks; shape (…, rows) unless stated otherwise."""

    seeds: Array  # number of training seeds
    mean: Array  # accuracy
    variance: Array  # of the accuracy over seeds, moderated; 0 for a row without seeds, such as the base model
    freedom: Array  # its degrees of freedom
    by_problem: Sequence[Array]  # accuracy by problem, a benchmark each: (…, rows, problems)
    residual: Sequence[Array]  # variance of a problem's accuracy that seeds and problems do not explain, a benchmark each


def rows_of(arms: Sequence[Sequence[Array]]) -> Rows:
    """Return the statistics of rows; each is a list of benchmarks, (seeds, problems), of the same problems.

    A row with one seed has no variance over seeds.
    """
    benchmarks = range(len(arms[0]))
    seeds = np.array([float(arm[0].shape[0]) for arm in arms])
    accuracy = [np.mean([table.mean(1) for table in arm], axis=0) for arm in arms]
    variances = np.array([float(values.var(ddof=1)) if len(values) > 1 else 0.0 for values in accuracy])
    variance, freedom = moderated(variances, seeds - 1)
    return Rows(
        seeds,
        np.array([values.mean() for values in accuracy]),
        variance,
        freedom,
        [np.array([arm[index].mean(0) for arm in arms]) for index in benchmarks],
        [np.array([residual_variance(arm[index]) for arm in arms]) for index in benchmarks],
    )


def residual_variance(table: Array) -> float:
    """Return the variance of entries (seeds, problems) around their seed's plus their problem's mean; 0 for one seed."""
    seeds, problems = table.shape
    if seeds < 2 or problems < 2:
        return 0.0
    residuals = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    return float((residuals**2).sum() / ((seeds - 1) * (problems - 1)))


@dataclass(frozen=True)
class Estimate:
    """A contrast at one look; each field has the leading shape of the rows, () for one sweep."""

    value: Any
    problems: Any  # F, the variance from the problems, which no seed reduces
    seeds: Any  # Σ w²·v/n, the variance from seeds and samples
    freedom: Any  # degrees of freedom of the sum of both

    def ratio(self, looked: Any) -> Any:
        """Return F/V at a look at `looked` seeds of each row."""
        return self.problems / np.maximum(self.seeds * looked, 1e-300)

    @property
    def error(self) -> Any:
        """The standard error."""
        return np.sqrt(self.problems + self.seeds)

    def half_width(self, level: Any) -> Any:
        """Return half of the width of the interval with the two-sided error `level`."""
        return special.stdtrit(self.freedom, 1 - np.asarray(level) / 2) * self.error


def estimate(rows: Rows, weights: Array) -> Estimate:
    """Return the contrast Σ weights·accuracy, weights of shape (rows,)."""
    used = np.flatnonzero(weights)
    w = weights[used]
    seeds, variance, freedom = rows.seeds[..., used], rows.variance[..., used], rows.freedom[..., used]
    value = rows.mean[..., used] @ w
    parts = w**2 * variance / seeds
    problems = 0.0
    degrees = 0.0
    count = len(rows.by_problem)
    for table, residual in zip(rows.by_problem, rows.residual, strict=True):
        gaps = np.einsum("...ij,i->...j", table[..., used, :], w)
        n = gaps.shape[-1]
        noise = (w**2 * residual[..., used] / seeds).sum(-1)
        problems = problems + np.maximum(gaps.var(-1, ddof=1) - noise, 0.0) / n / count**2
        degrees = degrees + (gaps.var(-1, ddof=1) / n / count**2) ** 2 / (n - 1)
    total = problems + parts.sum(-1)
    by_part = np.where(parts > 0, parts**2 / np.where(freedom > 0, freedom, np.inf), 0.0)
    squares = by_part.sum(-1) + np.minimum(degrees, problems**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        effective = np.where(squares > 0, total**2 / squares, 1e9)
    return Estimate(value, problems, parts.sum(-1), np.maximum(effective, 1.0))


def chance_of_decision(now: Estimate, growth: Any, level: Any, smallest: float, equivalent: bool) -> Any:
    """Return the probability that a claim is decided at a later look, given what is known now.

    `growth`: seeds then, divided by seeds now, at least 1; `level`: the error of that look; `smallest`: the smallest effect.
    The estimate then is normal around today's, with the variance by which more seeds reduce today's.
    """
    later = now.seeds / growth
    deviation = np.sqrt(np.maximum(now.seeds - later, 1e-300))
    half = -special.ndtri(level / 2) * np.sqrt(now.problems + later)

    def above(edge: Any) -> Any:
        return special.ndtr((now.value - edge) / deviation)

    if equivalent:
        inside = np.maximum(above(half - smallest) - above(smallest - half), 0.0)
        return inside + above(np.maximum(half, smallest)) + 1 - above(-np.maximum(half, smallest))
    return above(np.maximum(half, smallest)) + 1 - above(smallest - half)


def chance_per_seed(now: Estimate, looked: Any, ratio: Any, most: int, alpha: float, smallest: float, equivalent: bool) -> Any:
    """Return the largest probability per further seed with which a claim is decided at one of the looks that remain.

    `looked`: seeds of each of its rows now; the other arguments are those of nominal_level and chance_of_decision.
    """
    best = np.zeros(np.shape(now.value))
    for later in range(FIRST_LOOK + 1, most + 1):
        ahead = np.maximum(later - looked, 1)
        growth = np.maximum(later / np.maximum(looked, 1), 1.0)
        chance = chance_of_decision(now, growth, nominal_level(later, ratio, most, alpha), smallest, equivalent) / ahead
        best = np.where(later > looked, np.maximum(best, chance), best)
    return best


def open_rows(weights: Sequence[Array], worth: Any, seeds: Any) -> NDArray[np.bool_]:
    """Return which rows get a further seed, (…, rows): of each claim that is worth one, the rows with the fewest seeds.

    `weights`: of each claim, (rows,); `worth`: whether a claim is undecided and its chance per seed is at least LEAST_CHANCE,
    (…, claims); `seeds`: (…, rows).
    """
    chosen = np.zeros(np.shape(seeds), dtype=bool)
    for index, weight in enumerate(weights):
        used = weight != 0
        fewest = seeds[..., used].min(-1, keepdims=True)
        chosen |= np.asarray(worth)[..., index, None] & used & (seeds == fewest)
    return chosen
