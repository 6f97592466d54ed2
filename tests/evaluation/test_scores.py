"""Test scores and standard errors against closed forms, enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest

from rlvr_sweeps.evaluation.scores import (
    avg_at_k,
    mean_of_benchmarks,
    mean_score,
    pass_at,
    score_error,
    score_error_new_problems,
    standard_error,
    standard_error_new_problems,
)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 0, 1), (4, 1, 2), (5, 3, 2), (6, 6, 3), (8, 2, 8), (7, 4, 4)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(samples, correct, k):
    outcomes = [1] * correct + [0] * (samples - correct)
    subsets = list(itertools.combinations(outcomes, k))
    assert pass_at([correct], samples, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_requires_k_samples():
    assert math.isnan(pass_at([1, 2], 2, 4))


def test_pass_at_1_is_avg():
    correct = [0, 3, 8, 5]
    assert pass_at(correct, 8, 1) == pytest.approx(avg_at_k(correct, 8))


def test_scores_of_0_and_1_have_the_mean_and_errors_of_counts():
    table = np.random.default_rng(0).integers(0, 2, (7, 4))
    counts = table.sum(1)
    assert mean_score(table) == pytest.approx(avg_at_k(counts, 4))
    assert score_error(table) == pytest.approx(standard_error(counts, 4))
    assert score_error_new_problems(table) == pytest.approx(standard_error_new_problems(counts, 4))
    assert score_error([[0.2, 0.4], [1.5, 1.5]]) == pytest.approx(np.sqrt(0.02 / 2) / 2)
    assert math.isnan(score_error([[0.2]])) and math.isnan(score_error_new_problems([[0.2, 0.3]]))


def test_standard_errors_against_simulation():
    """The mean estimated variance equals the variance of Avg@k over repeated experiments."""
    rng = np.random.default_rng(0)
    k, n = 8, 30
    p = rng.beta(1, 1, n)
    same_problems = [rng.binomial(k, p) for _ in range(4000)]
    spread = np.std([avg_at_k(c, k) for c in same_problems])
    assert np.sqrt(np.mean([standard_error(c, k) ** 2 for c in same_problems])) == pytest.approx(spread, rel=0.04)
    new_problems = [rng.binomial(k, rng.beta(1, 1, n)) for _ in range(4000)]
    spread = np.std([avg_at_k(c, k) for c in new_problems])
    assert np.sqrt(np.mean([standard_error_new_problems(c, k) ** 2 for c in new_problems])) == pytest.approx(spread, rel=0.04)


def test_undefined_errors_are_nan_and_impossible_counts_are_refused():
    assert math.isnan(standard_error([1, 0], 1))
    assert math.isnan(standard_error_new_problems([1], 4))
    assert mean_of_benchmarks([0.2, 0.4], [0.03, 0.04]) == (pytest.approx(0.3), pytest.approx(0.025))
    for counts in ([], [5], [-1]):
        with pytest.raises(ValueError, match=r"scores need|counts must"):
            avg_at_k(counts, 4)
