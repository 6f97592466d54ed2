"""Test paired differences against closed forms, simulated experiments and small cases."""

import numpy as np
import pytest

from rlvr_sweeps.reporting.differences.bootstrap import difference, holm


def experiment(rng, sizes, k, seeds, seed_sd):
    """Return two arms of equal accuracy; problems differ in difficulty, and in the difference between the arms."""
    arms = ([], [])
    shifts = [rng.normal(0, seed_sd, seeds) for _ in arms]
    for n in sizes:
        level, gap = rng.beta(1, 1, n), rng.normal(0, 0.1, n)
        for arm, sign, shift in zip(arms, (1, -1), shifts, strict=True):
            arm.append(rng.binomial(k, np.clip(level + sign * gap / 2 + shift[:, None], 0, 1)) / k)
    return arms


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "k", "seeds", "seed_sd", "slack"),
    [
        ((30,), 32, 1, 0.0, 0.015),
        ((30, 40), 8, 1, 0.0, 0.015),
        ((30, 30, 30), 8, 1, 0.0, 0.015),
        ((30, 40), 8, 4, 0.015, 0.025),
    ],
)
def test_intervals_cover_and_p_values_are_uniform_enough(sizes, k, seeds, seed_sd, slack):
    """Test that in 2,000 experiments without a difference, 95 ± 1.5 % of the intervals contain 0.

    For four seeds, which have three degrees of freedom, ± 2.5 %. About as many p-values are above 0.05.
    """
    rng = np.random.default_rng(5)
    results = [difference(*experiment(rng, sizes, k, seeds, seed_sd)) for _ in range(2000)]
    assert np.mean([result.low <= 0 <= result.high for result in results]) == pytest.approx(0.95, abs=slack)
    assert 0.95 - slack <= np.mean([result.p > 0.05 for result in results]) <= 0.975  # ties between few samples make p larger


def test_the_interval_equals_students_where_that_is_exact():
    gap = np.random.default_rng(0).normal(0.03, 0.1, 200)
    result = difference([np.full((1, 200), 0.5) + gap], [np.full((1, 200), 0.5)])
    half = 1.97196 * gap.std(ddof=1) / np.sqrt(200)  # t with 199 degrees of freedom
    assert result.value == pytest.approx(gap.mean())
    assert (result.high - result.low) / 2 == pytest.approx(half, rel=0.03)


def test_pairing_removes_the_difficulty_of_problems():
    level = np.random.default_rng(1).beta(1, 1, 300)
    result = difference([np.minimum(level + 0.02, 1)[None]], [level[None]])
    assert result.low > 0.01 and result.p < 0.001


def test_seeds_widen_the_interval_by_their_spread():
    rng = np.random.default_rng(2)
    level = rng.beta(1, 1, 300)
    arm = lambda shifts: [np.clip(level + np.array(shifts)[:, None] + rng.normal(0, 0.02, (3, 300)), 0, 1)]  # noqa: E731
    equal_seeds, spread_seeds = (
        difference(arm([0, 0, 0]), arm([0, 0, 0])),
        difference(arm([-0.05, 0, 0.05]), arm([-0.05, 0, 0.05])),
    )
    assert spread_seeds.high - spread_seeds.low > 5 * (equal_seeds.high - equal_seeds.low)


def test_benchmarks_of_equal_size_are_resampled_independently():
    """Test that the interval of two benchmarks with opposite differences has a width, although their mean difference is 0."""
    gap = np.random.default_rng(4).normal(0, 0.1, 30)
    flat = np.full((1, 30), 0.5)
    single = difference([flat + gap], [flat])
    equal, opposite = difference([flat + gap, flat + gap], [flat, flat]), difference([flat + gap, flat - gap], [flat, flat])
    for pair in (equal, opposite):
        assert (pair.high - pair.low) / (single.high - single.low) == pytest.approx(0.5**0.5, rel=0.06)


def test_equal_arms_have_a_difference_of_zero():
    table = [np.array([[0.0, 0.5, 1.0]])]
    result = difference(table, table)
    assert (result.value, result.low, result.high, result.p) == (0, 0, 0, 1)


def test_an_interval_ends_where_no_accuracies_differ_by_more():
    """Test that a difference near one, with a wide interval from two seeds, has no end above one."""
    right, wrong = np.array([[1.0, 1.0, 1.0], [1.0, 0.4, 1.0]]), np.array([[0.0, 0.0, 0.1], [0.0, 0.0, 0.0]])
    result = difference([right], [wrong])
    assert result.high == 1
    assert -1 < result.low < result.value


def test_arms_with_different_problems_are_refused():
    with pytest.raises(ValueError, match="same problems"):
        difference([np.zeros((1, 3))], [np.zeros((1, 4))])


def test_sign_flips_are_exact_for_few_problems():
    """Test five differences of one sign: of the 32 sign patterns two are as extreme."""
    result = difference([np.full((1, 5), 0.3)], [np.full((1, 5), 0.1)])
    assert result.p == pytest.approx(2 / 32, abs=0.01)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
