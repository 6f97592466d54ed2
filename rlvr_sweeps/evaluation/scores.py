"""Scores of k samples per problem and their standard errors: pure functions of counts, without files or torch.

The functions take the number of correct samples per problem, shape (n,), and k, the number of samples per problem.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def as_counts(correct: Sequence[int], k: int) -> NDArray[np.float64]:
    """Return the counts as an array, shape (n,); raise ValueError where there are none, or one is not in [0, k]."""
    counts = np.asarray(correct, dtype=float)
    if counts.ndim != 1 or not len(counts):
        raise ValueError("scores need one count per problem, for at least one problem")
    if k < 1 or counts.min() < 0 or counts.max() > k:
        raise ValueError(f"counts must lie between 0 and k={k}; they lie between {counts.min():g} and {counts.max():g}")
    return counts


def avg_at_k(correct: Sequence[int], k: int) -> float:
    """Return Avg@k, the mean accuracy over problems and samples, in [0, 1]."""
    return float(as_counts(correct, k).mean() / k)


def standard_error(correct: Sequence[int], k: int) -> float:
    """Return the standard error of Avg@k for new samples of the same problems: (1/n)·√(Σ p̂(1−p̂)/(k−1)). NaN for k = 1."""
    if k < 2:
        return float("nan")
    p = as_counts(correct, k) / k
    return float(np.sqrt((p * (1 - p) / (k - 1)).sum()) / len(p))


def standard_error_new_problems(correct: Sequence[int], k: int) -> float:
    """Return the standard error of Avg@k for new problems too: √(Σ(p̂−p̄)²/(n(n−1))). NaN for a single problem."""
    p = as_counts(correct, k) / k
    if len(p) < 2:
        return float("nan")
    return float(np.sqrt(((p - p.mean()) ** 2).sum() / (len(p) * (len(p) - 1))))


def mean_score(scores: Sequence[Sequence[float]]) -> float:
    """Return Avg@k of scores that are any numbers, shape (n, k)."""
    return float(np.asarray(scores, dtype=float).mean())


def score_error(scores: Sequence[Sequence[float]]) -> float:
    """Return the standard error of Avg@k for new samples of the same problems: (1/n)·√(Σ s²/k), s² the variance of a problem's
    samples. NaN for k = 1.

    For scores of 0 and 1 it is `standard_error`, since then s²/k = p̂(1−p̂)/(k−1).
    """
    table = np.asarray(scores, dtype=float)
    n, k = table.shape
    return float(np.sqrt((table.var(1, ddof=1) / k).sum()) / n) if k > 1 else float("nan")


def score_error_new_problems(scores: Sequence[Sequence[float]]) -> float:
    """Return the standard error of Avg@k for new problems too: √(Σ(x̄−x̄̄)²/(n(n−1))) of the problems' means. NaN for one."""
    means = np.asarray(scores, dtype=float).mean(1)
    return float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else float("nan")


def pass_at(correct: Sequence[int], samples: int, k: int) -> float:
    """Return Pass@k, the unbiased probability that one of k samples is correct, from `samples` ≥ k per problem; else NaN.

    1 − C(n−c, k)/C(n, k) in product form, 1 − Π_{m=n−c+1}^{n} (1 − k/m) (Chen et al. 2021, arXiv 2107.03374).
    """
    if samples < k:
        return float("nan")
    counts = as_counts(correct, samples)
    estimates = [1.0 - np.prod(1.0 - k / np.arange(samples - int(c) + 1, samples + 1)) for c in counts]
    return float(np.mean(estimates))


def mean_of_benchmarks(means: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Return the mean of the benchmarks with equal weights, and its standard error from their independent errors."""
    n = len(means)
    return float(np.mean(means)), float(np.sqrt(np.square(errors).sum()) / n)


def majority_at_k(right: Sequence[int], rivals: Sequence[Sequence[int]]) -> float:
    """Return the share of problems for which a majority vote gives the correct answer (Wang et al. 2023, arXiv 2203.11171).

    `right` are the votes for the correct answer of each problem, `rivals` those for each wrong answer. A tie counts as its
    expected value under a random choice; a problem without votes is wrong. NaN without problems.
    """
    if not right:
        return float("nan")
    won = 0.0
    for votes, rival_votes in zip(right, rivals, strict=True):
        most = max(rival_votes, default=0)
        if votes and votes >= most:
            won += 1 / (1 + sum(count == votes for count in rival_votes))
    return won / len(right)


def none_if_nan(value: float) -> float | None:
    """Return the value, or None for NaN, which JSON does not have."""
    return None if np.isnan(value) else value
