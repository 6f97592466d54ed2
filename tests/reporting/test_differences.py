"""Paired differences against closed forms, simulation and hand-made cases."""

import numpy as np
import pytest

from rlvr_sweeps.reporting.differences.bootstrap import difference, holm


def experiment(rng, sizes, k, seeds, seed_sd):
    """Two arms of equal accuracy; problems differ in difficulty, and in which arm they suit."""
    arms = ([], [])
    shifts = [rng.normal(0, seed_sd, seeds) for _ in arms]
    for n in sizes:
        level, taste = rng.beta(1, 1, n), rng.normal(0, 0.1, n)
        for arm, sign, shift in zip(arms, (1, -1), shifts, strict=True):
            arm.append(rng.binomial(k, np.clip(level + sign * taste / 2 + shift[:, None], 0, 1)) / k)
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
    """Of 2,000 experiments without a difference, 95 ± 1.5 % of the intervals hold 0 (four seeds have three degrees of
    freedom: ± 2.5), and about as many p-values are above 0.05."""
    rng = np.random.default_rng(5)
    found = [difference(*experiment(rng, sizes, k, seeds, seed_sd)) for _ in range(2000)]
    assert np.mean([one.low <= 0 <= one.high for one in found]) == pytest.approx(0.95, abs=slack)
    assert 0.95 - slack <= np.mean([one.p > 0.05 for one in found]) <= 0.975  # ties of few samples err to the safe side


def test_the_interval_is_students_where_that_is_exact():
    gap = np.random.default_rng(0).normal(0.03, 0.1, 200)
    found = difference([np.full((1, 200), 0.5) + gap], [np.full((1, 200), 0.5)])
    half = 1.97196 * gap.std(ddof=1) / np.sqrt(200)  # t with 199 degrees of freedom
    assert found.value == pytest.approx(gap.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.03)


def test_pairing_takes_out_what_both_arms_share():
    level = np.random.default_rng(1).beta(1, 1, 300)
    found = difference([np.minimum(level + 0.02, 1)[None]], [level[None]])
    assert found.low > 0.01 and found.p < 0.001


def test_seeds_widen_the_interval_by_their_spread():
    rng = np.random.default_rng(2)
    level = rng.beta(1, 1, 300)
    arm = lambda shifts: [np.clip(level + np.array(shifts)[:, None] + rng.normal(0, 0.02, (3, 300)), 0, 1)]  # noqa: E731
    close, far = difference(arm([0, 0, 0]), arm([0, 0, 0])), difference(arm([-0.05, 0, 0.05]), arm([-0.05, 0, 0.05]))
    assert far.high - far.low > 5 * (close.high - close.low)


def test_benchmarks_of_one_size_are_resampled_apart():
    """Opposite differences on two benchmarks: their mean is 0, but it is not known to be."""
    gap = np.random.default_rng(4).normal(0, 0.1, 30)
    flat = np.full((1, 30), 0.5)
    one = difference([flat + gap], [flat])
    both, mixed = difference([flat + gap, flat + gap], [flat, flat]), difference([flat + gap, flat - gap], [flat, flat])
    for two in (both, mixed):
        assert (two.high - two.low) / (one.high - one.low) == pytest.approx(0.5**0.5, rel=0.06)


def test_equal_arms_differ_by_nothing():
    table = [np.array([[0.0, 0.5, 1.0]])]
    found = difference(table, table)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_arms_on_other_problems_are_refused():
    with pytest.raises(ValueError, match="same problems"):
        difference([np.zeros((1, 3))], [np.zeros((1, 4))])


def test_sign_flips_are_exact_for_few_problems():
    """Five differences of one sign: of the 32 sign patterns two are as extreme."""
    found = difference([np.full((1, 5), 0.3)], [np.full((1, 5), 0.1)])
    assert found.p == pytest.approx(2 / 32, abs=0.01)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
