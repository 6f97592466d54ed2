"""Test the grids of lr=auto: their rates, how they grow, and what is refused."""

import math

import pytest

from rlvr_sweeps.config.lr_grid import above, as_hydra_setting, below, best_of, grown, most_rates, start, tuned_rows
from rlvr_sweeps.errors import Refused


def test_the_ladder_has_factors_of_three_and_ten_thirds():
    rates = [1e-3]
    for _ in range(4):
        rates.append(above(rates[-1]))
    assert rates == [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
    for rate in reversed(rates[:-1]):
        assert below(above(rate)) == rate
    assert start([], 2e-4) == [6e-5, 2e-4, 6e-4] and start([1e-3, 1e-4], 1e-5) == [3e-6, 1e-5, 3e-5]
    assert start([1e-2, 1e-4, 1e-3, 1e-4], 1e-5) == [1e-4, 1e-3, 1e-2]


def peak(rate):
    """Return a score that is the higher, the nearer a rate is to `rate`."""
    return lambda other: (-abs(math.log10(other / rate)), 0.01)


@pytest.mark.parametrize(
    ("best", "bound", "expected"),
    [
        (1e-3, 7, [3e-4, 1e-3, 3e-3]),
        (1e-1, 9, [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]),
        (1e-1, 5, [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]),  # the bound ends it with the best at the edge
        (1e-4, 7, [3e-5, 1e-4, 3e-4, 1e-3, 3e-3]),
    ],
)
def test_a_grid_grows_until_the_best_rate_is_inside_or_the_bound_is_reached(best, bound, expected):
    assert grown([3e-4, 1e-3, 3e-3], peak(best), bound) == expected


def test_a_grid_waits_for_missing_runs_and_ignores_scores_that_are_not_numbers():
    assert grown([3e-4, 1e-3, 3e-3], lambda rate: None if rate == 3e-4 else (rate, 0.0), 7) == [3e-4, 1e-3, 3e-3]
    scores = {3e-4: (0.5, 0.01), 1e-3: (0.6, 0.01), 3e-3: (math.nan, 0.0)}
    assert grown([3e-4, 1e-3, 3e-3], scores.get, 7) == [3e-4, 1e-3, 3e-3]
    assert best_of([0.5, 0.7, 0.2, 0.7]) == 1 and best_of([math.nan, 0.1]) == 1 and best_of([math.nan]) == 0


def test_rates_that_change_nothing_are_followed_by_higher_ones():
    """Test a row that is equal to the base model up to 3e-3, within the noise of its scores, and better above."""
    scores = {3e-4: 0.502, 1e-3: 0.504, 3e-3: 0.503, 1e-2: 0.56, 3e-2: 0.30}
    assert grown([3e-4, 1e-3, 3e-3], lambda rate: (scores[rate], 0.01), 7) == [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
    assert len(grown([3e-4, 1e-3, 3e-3], lambda _rate: (0.5, 0.01), 6)) == 6


def test_points_that_differ_in_lr_and_seed_are_one_row():
    dora, lora = tuned_rows([
        ["peft=dora", "lr=1e-3", "seed=1"], ["peft=dora", "seed=2", "lr=1e-4"], ["peft=lora"],
        ["peft=dora", "lr=1e-3", "seed=2"],
    ])  # fmt: skip
    assert (dora.overrides, dora.seeds, dora.rates) == (("peft=dora",), ("seed=1", "seed=2"), (1e-3, 1e-4))
    assert (lora.overrides, lora.seeds, lora.rates) == (("peft=lora",), (), ())


def test_lr_auto_becomes_a_setting_of_the_sweeper_and_needs_a_grid():
    assert as_hydra_setting(["-m", "peft=lora", "lr=auto"]) == ["-m", "peft=lora", "hydra.sweeper.lr=auto:7"]
    assert as_hydra_setting(["sweep=methods", "lr=auto:9"]) == ["sweep=methods", "hydra.sweeper.lr=auto:9"]
    assert as_hydra_setting(["-m", "lr=1e-3,1e-4"]) == ["-m", "lr=1e-3,1e-4"]
    with pytest.raises(Refused, match=r"lr=auto is a grid of learning rates: python launch.py -m peft=lora lr=auto"):
        as_hydra_setting(["peft=lora", "lr=auto"])
    for text in ("auto:2", "auto:x", "automatic"):
        with pytest.raises(Refused, match=f"lr={text} is not possible. Allowed: lr=auto, .* from 3 on"):
            most_rates(text)
