"""Grids of learning rates that grow until the best rate is inside (`lr=auto`, or `lr=auto:9` with at most nine rates).

A row starts with three rates around its own, or with those that the sweep file gives it. Where the best rate, on held-out
training prompts, is the lowest or highest, the next one beyond is added. The grid follows from the results alone, so a
launch, a table and a repeated command agree on it without a record.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlvr_sweeps.config.settings import HELD_OUT
from rlvr_sweeps.config.sweeps import key_of
from rlvr_sweeps.errors import Refused

Score = tuple[float, float]  # accuracy and its standard error
AUTO = "auto"
POINT = 0.01  # of accuracy: a rate counts as good if it loses at most this to the best
MOST_RATES = 7  # of a row: three, and four more
FEWEST_RATES = 3  # a best rate needs a neighbour on each side
# What lr=auto adds where a launch does not set it: prompts to choose on, and a low result in place of a run that collapsed.
HELD_OUT_OVERRIDES = (f"+benchmark/extra@benchmark={HELD_OUT}", "data.holdout=200", "early_stopping=collapse")


def most_rates(text: str) -> int:
    """Return the bound on the number of rates in `auto` or `auto:N`; raise Refused for other texts."""
    match = re.fullmatch(r"auto(?::(\d+))?", text)
    bound = int(match[1] or MOST_RATES) if match else 0
    if bound < FEWEST_RATES:
        raise Refused(
            f"lr={text} is not possible. Allowed: lr=auto, for at most {MOST_RATES} rates of each row, or lr=auto:N for at "
            f"most N, from {FEWEST_RATES} on."
        )
    return bound


def is_auto(override: str) -> bool:
    """Return whether an override is lr=auto, with or without a bound."""
    return key_of(override) == "lr" and override.partition("=")[2].startswith(AUTO)


def split_auto(overrides: Sequence[str]) -> tuple[list[str], int | None]:
    """Return the overrides without lr=auto, and its bound; None where they have no lr=auto."""
    autos = [override.partition("=")[2] for override in overrides if is_auto(override)]
    return [override for override in overrides if not is_auto(override)], most_rates(autos[-1]) if autos else None


def as_hydra_setting(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of launch.py with lr=auto as a setting of the sweeper, since the dial lr is a number.

    Raise Refused where the command launches a single run, which has no grid.
    """
    rest, bound = split_auto(arguments)
    if bound is None:
        return list(arguments)
    is_grid = any(each in ("-m", "--multirun") for each in rest) or any(key_of(each) == "sweep" for each in rest)
    if not is_grid:
        raise Refused(f"lr=auto is a grid of learning rates: python launch.py -m {' '.join(arguments)}")
    return [*rest, f"hydra.sweeper.lr=auto:{bound}"]


def above(rate: float) -> float:
    """Return the rate after `rate` in the ladder 1, 3, 10, 30, … (or 2, 6, 20, …), with a factor of 3 or 10/3."""
    return rounded(rate * (3 if mantissa(rate) < 3 else 10 / 3))


def below(rate: float) -> float:
    """Return the rate before `rate` in the same ladder."""
    return rounded(rate / (3 if mantissa(rate) >= 3 else 10 / 3))


def mantissa(rate: float) -> float:
    """Return the leading factor of a rate from 1 up to, not including, 10."""
    return float(f"{rate:.6e}".partition("e")[0])


def rounded(rate: float) -> float:
    """Return a rate without the error of its last binary digits, which would be part of the run's id."""
    return float(f"{rate:.4g}")


def start(rates: Sequence[float], own: float) -> list[float]:
    """Return the rates that a row starts with: at least three of its own, else three around the rate it has without lr=auto."""
    return sorted(set(rates)) if len(set(rates)) >= FEWEST_RATES else [below(own), own, above(own)]


def is_good(score: Score, best: Score) -> bool:
    """Return whether a rate's accuracy is within a point, or one standard error of the difference, of the best."""
    return best[0] - score[0] <= max(POINT, math.hypot(score[1], best[1]))


def best_of(values: Sequence[float]) -> int:
    """Return the index of the highest value; of several equal ones, that nearest to the middle. NaN does not count."""
    measured = [index for index, value in enumerate(values) if not math.isnan(value)]
    middle = (len(values) - 1) / 2
    return max(measured, key=lambda index: (values[index], -abs(index - middle)), default=0)


def grown(rates: Sequence[float], score: Callable[[float], Score | None], bound: int) -> list[float]:
    """Return the grid that a row has by now: `rates`, extended while a best rate is at an edge and the bound allows it.

    Where all rates are equally good, they may all be too low to change the model, so a higher one is added. `score` returns a
    rate's accuracy on the held-out prompts with its standard error; None where a run is missing, which ends the extension.
    """
    grid = sorted(rates)
    while len(grid) < bound:
        scores = [score(rate) for rate in grid]
        known = [each for each in scores if each is not None]
        if len(known) < len(scores):
            return grid
        best = best_of([value for value, _ in known])
        if best == len(grid) - 1 or all(is_good(each, known[best]) for each in known):
            grid.append(above(grid[-1]))
        elif best == 0:
            grid.insert(0, below(grid[0]))
        else:
            return grid
    return grid


@dataclass(frozen=True)
class TunedRow:
    """A row without its learning rate: overrides without lr and seed, the seeds, and the rates given with it."""

    overrides: tuple[str, ...]
    seeds: tuple[str, ...]  # overrides such as seed=42; empty: the configuration's seed
    rates: tuple[float, ...]


def tuned_rows(points: Sequence[Sequence[str]]) -> list[TunedRow]:
    """Return the rows of a grid's points: points that differ in lr and seed alone are one row."""
    groups: dict[tuple[str, ...], tuple[dict[str, None], dict[float, None]]] = {}
    for point in points:
        seeds, rates = groups.setdefault(tuple(each for each in point if key_of(each) not in ("lr", "seed")), ({}, {}))
        seeds |= dict.fromkeys(each for each in point if key_of(each) == "seed")
        rates |= dict.fromkeys(float(each.partition("=")[2]) for each in point if key_of(each) == "lr")
    return [TunedRow(overrides, tuple(seeds), tuple(rates)) for overrides, (seeds, rates) in groups.items()]
