"""Simulate sweeps with adaptive seeds: do the intervals hold although they are looked at after every seed, and what is saved?

    python bench/adaptive_seeds.py [--sweeps 2000] [--most 12] [--least 0.02] [--paper] [--seed 0]

A sweep has 13 rows, LoRA among them, and each other row has a claim about its difference to LoRA: greater, less or equivalent,
with a smallest effect of one point. True accuracies (with --paper those that the paper prints in Table 3), problems, training
seeds and samples are drawn (Scenario); every sample is a right or a wrong answer. Three ways to spend seeds are compared on
the same sweeps: equal seeds for all rows with one look; adaptive seeds (reporting/differences/sequential.py); and the same
looks with ordinary 95 % intervals, as if there were one look.
"""

import argparse
import csv
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from rlvr_sweeps.reporting.differences import sequential
from rlvr_sweeps.reporting.differences.sequential import FIRST_LOOK, Estimate, Rows

ALPHA = 0.05
SMALLEST = 0.01  # the smallest effect of every claim, as accuracy
CHUNK = 40  # sweeps that are simulated at the same time
GREATER, EQUIVALENT = 0, 1


@dataclass(frozen=True)
class Scenario:
    """What a simulated sweep is drawn from; deviations are in logits, of which one point of accuracy is about 0.05."""

    rows: int = 13
    problems: int = 200
    samples: int = 8
    near: float = 0.06  # of a third of the rows around LoRA; the others: 0.3, and two rows lose 1 to 3
    problem: float = 1.5  # difficulty of the problems, common to all rows
    interaction: float = 0.3  # of a row's own strengths among the problems
    seed: float = 0.08  # of a training seed, in the median row
    unequal: float = 0.5  # of the logarithm of the seeds' deviation, between rows
    seed_problem: float = 0.3  # of a training seed's own strengths among the problems
    accuracies: tuple[float, ...] = ()  # true accuracies of the rows, LoRA first; empty: drawn


@dataclass(frozen=True)
class Sweeps:
    """Simulated sweeps: running sums over the seeds 1 to most, of arrays (sweeps, rows, seeds, …), and the true accuracies."""

    truth: Any  # (sweeps, rows)
    tables: Any  # sum of the share of right samples by problem: (sweeps, rows, seeds, problems)
    squares: Any  # sum over problems too, of its square: (sweeps, rows, seeds)
    means: Any  # sum of the accuracies: (sweeps, rows, seeds)
    mean_squares: Any
    directions: Any  # of each claim: 1 greater, -1 less; (sweeps, rows - 1)
    kinds: Any  # of each claim: GREATER or EQUIVALENT


def simulate(scenario: Scenario, sweeps: int, most: int, rng: np.random.Generator) -> Sweeps:
    """Return simulated sweeps with `most` seeds of each row."""
    shape = (sweeps, scenario.rows, most, scenario.problems)
    effects = rng.normal(0, 0.3, shape[:2])
    third = scenario.rows // 3
    effects[:, 1 : 1 + third] = rng.normal(0, scenario.near, (sweeps, third))
    effects[:, -2:] = -rng.uniform(1, 3, (sweeps, 2))
    effects[:, 0] = 0
    if scenario.accuracies:
        grid = np.linspace(-12, 12, 4001)
        effects[:] = np.interp(scenario.accuracies, accuracy(grid, scenario, scenario.seed**2), grid)
    spread = scenario.seed * np.exp(rng.normal(0, scenario.unequal, shape[:2]))
    difficulty = rng.normal(0, scenario.problem, (sweeps, 1, 1, scenario.problems))
    own = rng.normal(0, scenario.interaction, (*shape[:2], 1, scenario.problems))
    shift = rng.normal(0, 1, shape[:3]) * spread[:, :, None]
    logits = rng.standard_normal(shape, dtype=np.float32) * np.float32(scenario.seed_problem)
    logits += (effects[:, :, None, None] + difficulty + own + shift[..., None]).astype(np.float32)
    right = rng.binomial(scenario.samples, special.expit(logits)) / scenario.samples
    truth = accuracy(effects, scenario, spread**2)
    means = right.mean(-1)
    directions = rng.choice([-1.0, 1.0], (sweeps, scenario.rows - 1))
    if scenario.accuracies:
        directions[:] = np.sign(np.array(scenario.accuracies[1:]) - scenario.accuracies[0])
    return Sweeps(
        truth,
        right.cumsum(2),
        (right**2).sum(-1).cumsum(2),
        means.cumsum(2),
        (means**2).cumsum(2),
        directions,
        np.where(np.arange(scenario.rows - 1) % 4 == 0, EQUIVALENT, GREATER) * np.ones((sweeps, 1), dtype=int),
    )


def accuracy(effects: Any, scenario: Scenario, seed_variance: Any) -> Any:
    """Return the mean accuracy over problems and seeds of rows with these effects in logits."""
    variance = scenario.problem**2 + scenario.interaction**2 + scenario.seed_problem**2 + seed_variance
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    logits = np.asarray(effects)[..., None] + np.sqrt(variance * np.ones(np.shape(effects)))[..., None] * points
    return special.expit(logits) @ (weights / weights.sum())


def printed_accuracies() -> tuple[float, ...]:
    """Return the accuracies of Table 3 as the paper prints them, LoRA first, without the base model."""
    with (Path(__file__).parent.parent / "paper" / "reference.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["table"], row["metric"]) == ("table3", "overall")]
    trained = sorted((row for row in rows if row["row"] != "Base"), key=lambda row: row["row"] != "LoRA")
    return tuple(float(row["percent"]) / 100 for row in trained)


def rows_at(sweeps: Sweeps, seeds: Any) -> Rows:
    """Return the statistics of each row's first `seeds` seeds, (sweeps, rows), at least FIRST_LOOK."""
    problems = sweeps.tables.shape[-1]

    def taken(sums: Any) -> Any:
        index = (seeds - 1)[:, :, None]
        return np.take_along_axis(sums, index, 2)[:, :, 0]

    n = seeds.astype(float)
    mean = taken(sweeps.means) / n
    variance = np.maximum(taken(sweeps.mean_squares) - n * mean**2, 0) / (n - 1)
    by_problem = np.take_along_axis(sweeps.tables, (seeds - 1)[:, :, None, None], 2)[:, :, 0] / n[..., None]
    between_seeds = problems * (n - 1) * variance
    between_problems = n * problems * by_problem.var(-1)
    total = taken(sweeps.squares) - n * problems * mean**2
    residual = (total - between_seeds - between_problems) / ((n - 1) * (problems - 1))
    moderated, freedom = sequential.moderated(variance, n - 1)
    return Rows(n, mean, moderated, freedom, [by_problem], [np.maximum(residual, 0)])


def contrasts(rows: int) -> list[Any]:
    """Return the weights of each claim: a row minus row 0."""
    weights = np.eye(rows)[1:]
    weights[:, 0] = -1
    return list(weights)


def estimates(rows: Rows, weights: list[Any]) -> Estimate:
    """Return every claim's estimate, each field of shape (sweeps, claims)."""
    each = [sequential.estimate(rows, weight) for weight in weights]
    return Estimate(*(np.stack([getattr(one, key) for one in each], -1) for key in ("value", "problems", "seeds", "freedom")))


def oriented(estimated: Estimate, directions: Any, kinds: Any) -> Estimate:
    """Return estimates in the direction of their claims."""
    return replace(estimated, value=estimated.value * np.where(kinds == EQUIVALENT, 1.0, directions))


def verdicts(value: Any, half: Any, kinds: Any) -> Any:
    """Return 1 supported, -1 refuted, 0 undecided, by the rule of reporting/claims/rule.py."""
    low, high = value - half, value + half
    excludes_zero = (low > 0) | (high < 0)
    greater = np.where((low > 0) & (value >= SMALLEST), 1, np.where(high < SMALLEST, -1, 0))
    inside = (low > -SMALLEST) & (high < SMALLEST)
    equivalent = np.where(inside, 1, np.where(excludes_zero & (np.abs(value) >= SMALLEST), -1, 0))
    return np.where(kinds == EQUIVALENT, equivalent, greater)


def wrong(decided: Any, truth: Any, kinds: Any) -> Any:
    """Return which verdicts contradict the true difference in the direction of the claim."""
    supported = np.where(kinds == EQUIVALENT, np.abs(truth) >= SMALLEST, truth <= 0)
    refuted = np.where(kinds == EQUIVALENT, truth == 0, truth >= SMALLEST)
    return ((decided == 1) & supported) | ((decided == -1) & refuted)


@dataclass
class Outcome:
    """What one way of spending seeds gives, (sweeps, claims), and its runs, (sweeps,)."""

    verdict: Any
    covers_at_the_end: Any  # whether the interval at the last look of the claim contains the true difference
    covers_always: Any  # whether those of all its looks do
    runs: Any


def adaptive(sweeps: Sweeps, most: int, least: float, looks_corrected: bool = True) -> Outcome:
    """Return the outcome of adaptive seeds; without the correction, every look has the error ALPHA."""
    count, rows = sweeps.truth.shape
    weights = contrasts(rows)
    truth = (sweeps.truth @ np.array(weights).T) * np.where(sweeps.kinds == EQUIVALENT, 1.0, sweeps.directions)
    seeds = np.full((count, rows), FIRST_LOOK)
    verdict = np.zeros((count, rows - 1), dtype=int)
    at_end, always = np.ones_like(verdict, dtype=bool), np.ones_like(verdict, dtype=bool)
    looked, ratio = np.zeros_like(verdict), np.full(verdict.shape, np.inf)
    while True:
        estimated = oriented(estimates(rows_at(sweeps, seeds), weights), sweeps.directions, sweeps.kinds)
        n = np.minimum(seeds[:, 1:], seeds[:, :1])
        new = (verdict == 0) & (n > looked)
        ratio = np.where(new, np.minimum(ratio, estimated.ratio(n)), ratio)

        half = estimated.half_width(sequential.nominal_level(n, ratio, most, ALPHA) if looks_corrected else ALPHA)
        covered = np.abs(estimated.value - truth) <= half
        at_end, always = np.where(new, covered, at_end), always & (covered | ~new)
        verdict = np.where(new, verdicts(estimated.value, half, sweeps.kinds), verdict)
        looked = np.where(new, n, looked)
        each = [
            sequential.chance_per_seed(
                estimated, n, ratio if looks_corrected else np.full_like(ratio, np.inf), most, ALPHA, SMALLEST, kind
            )
            for kind in (False, True)
        ]
        chances = np.where(sweeps.kinds == EQUIVALENT, each[1], each[0])
        further = sequential.open_rows(weights, (verdict == 0) & (n < most) & (chances >= least), seeds)
        if not further.any():
            return Outcome(verdict, at_end, always, seeds.sum(1))
        seeds = seeds + further


def equal_seeds(sweeps: Sweeps, seeds: int) -> Outcome:
    """Return the outcome of the same number of seeds for all rows, with one look."""
    count, rows = sweeps.truth.shape
    weights = contrasts(rows)
    truth = (sweeps.truth @ np.array(weights).T) * np.where(sweeps.kinds == EQUIVALENT, 1.0, sweeps.directions)
    estimated = estimates(rows_at(sweeps, np.full((count, rows), seeds)), weights)
    estimated = oriented(estimated, sweeps.directions, sweeps.kinds)
    half = estimated.half_width(ALPHA)
    covered = np.abs(estimated.value - truth) <= half
    return Outcome(verdicts(estimated.value, half, sweeps.kinds), covered, covered, np.full(count, rows * seeds))


def run(total: int, most: int, least: float, seed: int, scenario: Scenario) -> dict[str, Any]:
    """Return the results of `total` sweeps as plain data: per way of spending seeds, runs, coverage, errors and power."""
    rng = np.random.default_rng(seed)
    sums: dict[str, list[dict[str, float]]] = {}
    done = 0
    while done < total:
        count = min(CHUNK, total - done)
        sweeps = simulate(scenario, count, most, rng)
        truth = (sweeps.truth[:, 1:] - sweeps.truth[:, :1]) * np.where(sweeps.kinds == EQUIVALENT, 1.0, sweeps.directions)
        outcomes = {"adaptive": adaptive(sweeps, most, least), "uncorrected": adaptive(sweeps, most, least, False)}
        outcomes |= {f"equal {seeds}": equal_seeds(sweeps, seeds) for seeds in range(FIRST_LOOK, most + 1)}
        for name, outcome in outcomes.items():
            errors = wrong(outcome.verdict, truth, sweeps.kinds)
            sums.setdefault(name, []).append({
                "sweeps": count, "runs": outcome.runs.sum(), "covers_at_the_end": outcome.covers_at_the_end.mean() * count,
                "covers_always": outcome.covers_always.mean() * count, "wrong": errors.mean() * count,
                "decided_right": ((outcome.verdict != 0) & ~errors).mean() * count,
                "fewest": outcome.runs.min(), "longest": outcome.runs.max(),
            })  # fmt: skip
        done += count
    return {name: summary(parts) for name, parts in sums.items()} | {"saving": saving(sums)}


def summary(parts: list[dict[str, float]]) -> dict[str, float]:
    """Return the means over all sweeps."""
    total = sum(part["sweeps"] for part in parts)
    keys = ("runs", "covers_at_the_end", "covers_always", "wrong", "decided_right")
    return {key: float(sum(part[key] for part in parts) / total) for key in keys}


def saving(sums: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return how many runs equal seeds need for the power of adaptive seeds, and its ratio to their mean number of runs.

    Between two numbers of seeds, the number of runs is interpolated. Where the most seeds do not reach the power, it is a
    bound.
    """
    power = {name: summary(parts)["decided_right"] for name, parts in sums.items()}
    equal = [(power[name], summary(sums[name])["runs"]) for name in power if name.startswith("equal")]
    needed = float(np.interp(power["adaptive"], [x for x, _ in equal], [y for _, y in equal]))
    reached = power["adaptive"] <= equal[-1][0]
    return {
        "equal_runs_for_the_same_power": needed,
        "is_bound": not reached,
        "ratio": needed / summary(sums["adaptive"])["runs"],
    }


def lines(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the printed table."""
    titles = ("runs", "covers at the end %", "covers at every look %", "wrong %", "rightly decided %")
    yield f"{'':13} {titles[0]:>7} {titles[1]:>20} {titles[2]:>23} {titles[3]:>8} {titles[4]:>18}"
    for name, row in results.items():
        if name != "saving":
            numbers = [100 * row[key] for key in ("covers_at_the_end", "covers_always", "wrong", "decided_right")]
            yield f"{name:13} {row['runs']:7.1f} {numbers[0]:20.2f} {numbers[1]:23.2f} {numbers[2]:8.2f} {numbers[3]:18.1f}"
    estimated = results["saving"]
    bound = "more than " if estimated["is_bound"] else ""
    yield (
        f"Equal seeds need {bound}{estimated['equal_runs_for_the_same_power']:.1f} runs for the power of adaptive seeds, "
        f"{estimated['ratio']:.2f} times as many."
    )


def main() -> None:
    """Run the simulation and print its table, or with --json its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=2000)
    parser.add_argument("--most", type=int, default=sequential.MOST_SEEDS, help="most seeds of a row")
    parser.add_argument(
        "--least", type=float, default=sequential.LEAST_CHANCE, help="smallest chance of a decision that is worth a seed"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--paper", action="store_true", help="true accuracies as the paper prints them in Table 3")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    start = time.perf_counter()
    scenario = Scenario(accuracies=printed_accuracies()) if arguments.paper else Scenario()
    results = run(arguments.sweeps, arguments.most, arguments.least, arguments.seed, scenario)
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    print("\n".join(lines(results)))
    print(f"{arguments.sweeps:,} sweeps, at most {arguments.most} seeds a row, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
