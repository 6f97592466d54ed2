"""Scores of k samples per problem and their standard errors: pure functions on counts, no files, no torch.

A score is a table y of 0 and 1, problem i of n by sample j of k. Everything here takes c, the right samples per problem,
shape (n,), and k.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def as_counts(correct: Sequence[int], k: int) -> NDArray[np.float64]:
    counts = np.asarray(correct, dtype=float)
    if counts.ndim != 1 or not len(counts):
        raise ValueError("scores need one count per problem, for at least one problem")
    if k < 1 or counts.min() < 0 or counts.max() > k:
        raise ValueError(f"counts must lie between 0 and k={k}; found {counts.min():g} to {counts.max():g}")
    return counts


def avg_at_k(correct: Sequence[int], k: int) -> float:
    """Mean accuracy over problems and samples, in [0, 1]."""
    return float(as_counts(correct, k).mean() / k)


def standard_error(correct: Sequence[int], k: int) -> float:
    """Of Avg@k, if these same problems were sampled again: (1/n)·√(Σ p̂(1−p̂)/(k−1)). NaN when k is 1."""
    if k < 2:
        return float("nan")
    p = as_counts(correct, k) / k
    return float(np.sqrt((p * (1 - p) / (k - 1)).sum()) / len(p))


def standard_error_new_problems(correct: Sequence[int], k: int) -> float:
    """Of Avg@k, if new problems were drawn as well: √(Σ(p̂−p̄)²/(n(n−1))). NaN for a single problem."""
    p = as_counts(correct, k) / k
    if len(p) < 2:
        return float("nan")
    return float(np.sqrt(((p - p.mean()) ** 2).sum() / (len(p) * (len(p) - 1))))


def pass_at(correct: Sequence[int], samples: int, k: int) -> float:
    """Unbiased probability that at least one of k samples is right, from `samples` ≥ k per problem; else NaN.

    1 − C(n−c, k)/C(n, k) in product form, 1 − Π_{m=n−c+1}^{n} (1 − k/m) (Chen et al. 2021, arXiv 2107.03374).
    """
    if samples < k:
        return float("nan")
    counts = as_counts(correct, samples)
    estimates = [1.0 - np.prod(1.0 - k / np.arange(samples - int(c) + 1, samples + 1)) for c in counts]
    return float(np.mean(estimates))


def mean_of_benchmarks(means: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """The overall average, each benchmark counting the same, and its standard error from independent ones."""
    n = len(means)
    return float(np.mean(means)), float(np.sqrt(np.square(errors).sum()) / n)


def majority_at_k(right: Sequence[int], rivals: Sequence[Sequence[int]]) -> float:
    """Share of problems decided rightly by a vote: votes for the right answer against those for each wrong one.

    A tie is decided by lot (Wang et al. 2023, arXiv 2203.11171); a problem without votes is wrong. NaN without problems.
    """
    if not right:
        return float("nan")
    won = 0.0
    for votes, others in zip(right, rivals, strict=True):
        most = max(others, default=0)
        if votes and votes >= most:
            won += 1 / (1 + sum(other == votes for other in others))
    return won / len(right)


def none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else value
