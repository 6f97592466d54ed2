"""Test looks after every seed: the error that they spend, the variances, and intervals in simulated sweeps."""

import sys

import numpy as np
import pytest
from scipy import stats

from rlvr_sweeps.reporting.differences import sequential
from rlvr_sweeps.reporting.differences.bootstrap import difference
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))
import adaptive_seeds


@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
def test_all_looks_together_have_the_error_alpha(ratio):
    """Draw the estimates of all looks from their joint normal distribution, of which the variance is F + V/n."""
    most, draws = 10, 400_000
    rng = np.random.default_rng(3)
    by_seed = rng.standard_normal((draws, most)).cumsum(1) / np.arange(1, most + 1)
    estimates = by_seed + np.sqrt(ratio) * rng.standard_normal((draws, 1))
    crossed, spent = np.zeros(draws, dtype=bool), []
    for seeds, level in sequential.nominal_levels(most, 0.05, ratio).items():
        crossed |= np.abs(estimates[:, seeds - 1]) > stats.norm.isf(level / 2) * np.sqrt(ratio + 1 / seeds)
        spent.append(crossed.mean())
    expected = [sequential.spent(seeds, most, 0.05) for seeds in range(2, most + 1)]
    np.testing.assert_allclose(spent, expected, atol=4 * np.sqrt(0.05 * 0.95 / draws))


def test_pocock_and_fixed_designs():
    """Jennison & Turnbull 1999: with one look the level is α; Table 2.1, Pocock's constant for two looks is 2.178."""
    assert sequential.nominal_levels(7, 0.05, first=7)[7] == pytest.approx(0.05)
    first = sequential.spent(1, 2, 0.05)
    assert sequential.nominal_levels(2, 0.05, first=1)[1] == pytest.approx(first)
    pocock, rho = 2 * stats.norm.sf(2.178), 1.0
    cov = [[1, np.sqrt(0.5)], [np.sqrt(0.5), 1]]
    inside = stats.multivariate_normal(cov=cov)
    assert 1 - inside.cdf([2.178, 2.178], lower_limit=[-2.178, -2.178]) == pytest.approx(0.05, abs=2e-4)
    levels = sequential.nominal_levels(2, 0.05, first=1)
    assert min(levels.values()) < pocock < max(levels.values()), f"linear spending (ρ={rho}) lies on both sides of Pocock's"


def test_a_larger_ratio_costs_less_and_is_rounded_down():
    ratios, table = sequential.level_table(10, 0.05)
    assert (np.diff(table[:, 3:], axis=0) > 0).all()
    assert table[:, 2] == pytest.approx(sequential.spent(2, 10, 0.05))
    assert sequential.nominal_level(5, ratios[2] + 1e-6, 10, 0.05) == table[2, 5]
    assert sequential.nominal_level(5, np.inf, 10, 0.05) == table[-1, 5]
    assert len(sequential.level_table(30, 0.05)[0]) < len(ratios), "short steps are left out"


def test_moderated_variances_find_the_common_value_and_its_weight():
    """Smyth 2004, Sec. 4: variances of rows are s₀²·d₀/χ²(d₀), their estimates that times χ²(d)/d."""
    rng = np.random.default_rng(0)
    rows, freedom, prior, common = 4000, 3.0, 6.0, 2.5
    true = common * prior / rng.chisquare(prior, rows)
    estimates = true * rng.chisquare(freedom, rows) / freedom
    moderated, degrees = sequential.moderated(estimates, np.full(rows, freedom))
    weight = degrees[0] - freedom
    assert weight == pytest.approx(prior, rel=0.15)
    assert (moderated - freedom / degrees * estimates).std() < 1e-9
    assert moderated[0] * degrees[0] - freedom * estimates[0] == pytest.approx(weight * common, rel=0.1)
    assert ((moderated - true) ** 2).mean() < ((estimates - true) ** 2).mean()


def test_equal_variances_are_pooled_and_a_row_without_seeds_is_left_out():
    rng = np.random.default_rng(1)
    estimates = np.append(rng.chisquare(2, 12) / 2, 0.0)
    moderated, degrees = sequential.moderated(estimates, np.append(np.full(12, 2.0), 0.0))
    assert (degrees[:12] <= 24).all()
    assert np.ptp(moderated[:12]) < np.ptp(estimates[:12]) / 2
    assert (moderated[12], degrees[12]) == (0.0, 0.0)
    zero, _ = sequential.moderated(np.array([0.0, 0.0, 0.0]), np.ones(3))
    assert (zero == 0).all() or (zero < 1e-200).all(), "rows that never vary"


def test_the_variance_of_a_contrast_is_that_of_the_bootstrap():
    rng = np.random.default_rng(2)
    ability = rng.uniform(0.2, 0.8, 300)
    arms = [
        [np.clip(ability + shift + 0.03 * rng.standard_normal((6, 1)) + 0.1 * rng.standard_normal((6, 300)), 0, 1)]
        for shift in (0.0, 0.05, 0.1)
    ]
    rows = sequential.rows_of(arms)
    own = sequential.Rows(rows.seeds, rows.mean, np.array([arm[0].mean(1).var(ddof=1) for arm in arms]), rows.seeds - 1,
                          rows.by_problem, rows.residual)  # fmt: skip
    estimated = sequential.estimate(own, np.array([-1.0, 1.0, 0.0]))
    reference = difference(arms[1], arms[0])
    assert estimated.value == pytest.approx(reference.value)
    assert estimated.half_width(0.05) == pytest.approx((reference.high - reference.low) / 2, rel=0.05)
    assert estimated.problems + estimated.seeds == pytest.approx(estimated.error**2)


def test_batched_statistics_equal_those_of_single_sweeps():
    rng = np.random.default_rng(5)
    sweeps = adaptive_seeds.simulate(adaptive_seeds.Scenario(rows=4, problems=50), 3, 5, rng)
    seeds = np.array([[2, 3, 5, 2], [4, 4, 4, 4], [5, 2, 3, 5]])
    batch = adaptive_seeds.rows_at(sweeps, seeds)
    weight = np.array([-1.0, 0.5, 0.5, 0.0])
    together = sequential.estimate(batch, weight)
    single = np.diff(sweeps.tables, axis=2, prepend=0)
    for index in range(3):
        rows = sequential.rows_of([[single[index, row, : seeds[index, row]]] for row in range(4)])
        np.testing.assert_allclose(batch.variance[index], rows.variance)
        np.testing.assert_allclose(batch.residual[0][index], rows.residual[0])
        alone = sequential.estimate(rows, weight)
        for key in ("value", "problems", "seeds", "freedom"):
            np.testing.assert_allclose(getattr(together, key)[index], getattr(alone, key))


def test_a_chance_of_decision_is_the_share_of_simulated_futures():
    now = sequential.Estimate(np.float64(0.012), 1e-5, 4e-5, 1e9)
    rng = np.random.default_rng(0)
    level, growth = 0.02, 3.0
    later = now.value + np.sqrt(4e-5 - 4e-5 / growth) * rng.standard_normal(200_000)
    half = stats.norm.isf(level / 2) * np.sqrt(1e-5 + 4e-5 / growth)
    for equivalent in (False, True):
        kinds = np.array(adaptive_seeds.EQUIVALENT if equivalent else adaptive_seeds.GREATER)
        share = (adaptive_seeds.verdicts(later, half, kinds) != 0).mean()
        chance = sequential.chance_of_decision(now, growth, level, adaptive_seeds.SMALLEST, equivalent)
        assert chance == pytest.approx(share, abs=0.005)


def refuse_bad_coverage(results):
    """Check the properties that adaptive seeds promise, on a simulation's results."""
    adaptive, uncorrected = results["adaptive"], results["uncorrected"]
    assert adaptive["covers_always"] >= 0.94
    assert adaptive["covers_at_the_end"] >= 0.94
    assert uncorrected["covers_always"] < 0.94, "looks without a correction: a test that could not fail otherwise"
    assert adaptive["wrong"] <= 0.01
    assert results["saving"]["ratio"] > 1.2, "fewer runs than equal seeds at the same power"


def test_intervals_hold_in_simulated_sweeps():
    refuse_bad_coverage(adaptive_seeds.run(120, 8, sequential.LEAST_CHANCE, 0, adaptive_seeds.Scenario(problems=100)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("accuracies", [(), adaptive_seeds.printed_accuracies()], ids=["drawn", "paper"])
def test_intervals_hold_in_2000_simulated_sweeps(accuracies):
    scenario = adaptive_seeds.Scenario(accuracies=accuracies)
    refuse_bad_coverage(adaptive_seeds.run(2000, sequential.MOST_SEEDS, sequential.LEAST_CHANCE, 0, scenario))
