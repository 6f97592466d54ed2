"""Compare runs (`rlvr compare A B…`): paired differences to the first run, by benchmark and overall, from their samples."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rlvr_sweeps.config.settings import averaged_benchmarks, is_trained
from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.files import Row
from rlvr_sweeps.reporting.differences.bootstrap import Array, Difference, difference, holm
from rlvr_sweeps.reporting.rows import Right, row_of, summary_of
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.reading import named_run

MUST_BE_EQUAL = (
    ("benchmarks, k, decoding, grading or verifier", "Evaluate them alike"),
    ("versions of the grader", "Bring both to one version: rlvr regrade"),
    ("problems or answers", "Use the same data on both machines"),
)


@dataclass(frozen=True)
class Side:
    """One arm: a run, or several that differ in their seed. scores: benchmark -> p̂, shape (seeds, problems)."""

    label: str
    runs: list[Run]
    scores: dict[str, Array]


def read_sides(arguments: Sequence[str], runs_dir: Path) -> list[Side]:
    """Return a side per argument: a run, or its seeds separated by commas. Raise Refused if two were evaluated differently."""
    groups = [[named_run(name, runs_dir) for name in argument.split(",")] for argument in arguments]
    for runs in groups:
        refuse_no_seeds(runs)
    refuse_unlike({run.name: request_of(run) for runs in groups for run in runs})
    return [
        Side(runs[0].name + (f" (+{len(runs) - 1} seeds)" if len(runs) > 1 else ""), runs, read_scores(runs)) for runs in groups
    ]


def readable(arguments: Sequence[str], runs_dir: Path) -> tuple[list[str], list[str]]:
    """Return the arguments whose runs can be read, and a sentence on each of the others.

    Raises Damaged where nothing is left to compare: the first run, or all others, are damaged.
    """
    kept: list[str] = []
    sentences: list[str] = []
    first_damage: Damaged | None = None
    for argument in arguments:
        try:
            for run in (named_run(name, runs_dir) for name in argument.split(",")):
                run.config()
                if run.summary_path.exists():
                    request_of(run)
            kept.append(argument)
        except Damaged as damage:
            first_damage = first_damage or damage
            sentences.append(f"{argument} is unreadable and left out: {damage}")
    if first_damage and (len(kept) < 2 or kept[0] != arguments[0]):
        raise first_damage
    return kept, sentences


def refuse_no_seeds(runs: Sequence[Run]) -> None:
    """Raise Refused where runs named as one arm are one run twice, or differ in more than their seed."""
    if len({run.path for run in runs}) < len(runs):
        raise Refused(f"{runs[0].name} is named twice in one arm: the same run is not two seeds.")
    arms = [row_of(run.config()) for run in runs]
    for run, arm in zip(runs[1:], arms[1:], strict=True):
        if differing := sorted(key for key in arms[0].keys() | arm.keys() if arms[0].get(key) != arm.get(key)):
            raise Refused(f"{runs[0].name} and {run.name} are not seeds of one row: they differ in {', '.join(differing[:4])}.")


def read_scores(runs: Sequence[Run]) -> dict[str, Array]:
    """Return p̂ by benchmark, shape (seeds, problems), read from the runs' directories."""
    return scores_of([right_of(run) for run in runs])


def scores_of(counts: Sequence[Right]) -> dict[str, Array]:
    """Return p̂ by benchmark, shape (seeds, problems), from the right samples of runs that differ in their seed.

    Where a reward function gave scores, p̂ is the mean score of a problem's samples, as in Avg@k.
    """
    return {
        name: np.array([list(count[name]["mean"].values()) for count in counts])
        if "mean" in entry
        else np.array([list(count[name]["right"].values()) for count in counts]) / entry["k"]
        for name, entry in counts[0].items()
    }


def right_of(run: Run) -> Right:
    """Return by benchmark: k, a hash of the gold answers, and the number of right samples of each problem."""
    counts = run.right_samples()
    if counts is None:
        raise Refused(f"{run.name} has no {run.right_path.name} beside its samples. To write it: rlvr regrade {run.name}.")
    return counts


def request_of(run: Run) -> tuple[Any, ...]:
    """Return `request` of a run, read from its directory."""
    if not run.summary_path.exists():
        raise Refused(f"{run.name} is not evaluated yet.")
    return request(summary_of(run), right_of(run))


def request(summary: Row, right: Right) -> tuple[Any, ...]:
    """Return the facts that must be equal in compared runs: the evaluation request, the grader, the problems and golds."""
    problems = {name: (entry["golds"], list(entry["right"])) for name, entry in right.items()}
    return summary["evaluation"], summary.get("grader"), problems


def refuse_unlike(requests: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise Refused where two runs were evaluated differently; `requests` is by run name."""
    (name, first), *rest = requests.items()
    for second_name, request in rest:
        for (difference_text, remedy), value, second_value in zip(MUST_BE_EQUAL, first, request, strict=True):
            if value != second_value:
                raise Refused(f"{name} and {second_name} were evaluated with different {difference_text}. {remedy}.")


def compare(arguments: Sequence[str], runs_dir: Path) -> list[dict[str, Any]]:
    """Return a row per side after the first and benchmark (and `overall`): averages, difference, interval, p, Holm's p.

    `seeds` are the training seeds of both sides, None for a model without a training.
    """
    base, *sides = read_sides(arguments, runs_dir)
    return against(base, sides)


def against(base: Side, sides: Sequence[Side]) -> list[dict[str, Any]]:
    """Return the rows of `compare`; Holm's correction is over `sides`, for each benchmark and overall."""
    rows = []
    for name in [*base.scores, "overall"]:
        differences: list[tuple[Side, Difference]] = []
        for side in sides:
            differences.append((side, difference(tables(side, name), tables(base, name))))
        adjusted = holm([result.p for _, result in differences])
        for (side, result), p in zip(differences, adjusted, strict=True):
            rows.append({
                "benchmark": name, "a": base.label, "b": side.label, "a_avg": average(base, name), "b_avg": average(side, name),
                "difference": result.value, "low": result.low, "high": result.high, "p": result.p, "p_holm": p,
                "seeds": [training_seeds(base), training_seeds(side)],
            })  # fmt: skip
    return rows


def tables(side: Side, name: str) -> list[Array]:
    """Return a side's arrays of one benchmark, or of all averaged benchmarks for `overall`."""
    return (
        [side.scores[benchmark] for benchmark in averaged_benchmarks(side.scores)] if name == "overall" else [side.scores[name]]
    )


def training_seeds(side: Side) -> int | None:
    """Return the number of training seeds of a side; None for a model without a training."""
    return len(side.runs) if is_trained(side.runs[0].config()) else None


def average(side: Side, name: str) -> float:
    """Return the accuracy of a side on a benchmark, or overall."""
    return float(np.mean([table.mean() for table in tables(side, name)]))


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the rows of `compare` as a table."""
    several = len({row["b"] for row in rows}) > 1
    console.print(f"A: {rows[0]['a']}", highlight=False)
    for index, label in enumerate(dict.fromkeys(row["b"] for row in rows)):
        console.print(f"B{index + 1 if several else ''}: {label}", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "benchmark"):
        table.add_column(column)
    for column in ("A %", "B %", "B − A, points", "95 % interval", "p", *(["p (Holm)"] if several else [])):
        table.add_column(column, justify="right")
    labels = {label: f"B{index + 1}" if several else "B" for index, label in enumerate(dict.fromkeys(row["b"] for row in rows))}
    for row in rows:
        numbers = [f"{100 * row['a_avg']:.1f}", f"{100 * row['b_avg']:.1f}", f"{100 * row['difference']:+.1f}"]
        interval = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
        p_values = [f"{row['p']:.4f}", *([f"{row['p_holm']:.4f}"] if several else [])]
        table.add_row(labels[row["b"]], row["benchmark"], *numbers, interval, *p_values)
    console.print(table)
    seeds = [number for row in rows for number in row["seeds"] if number is not None]
    console.print(
        "Paired by problem. Interval: hierarchical bootstrap over problems"
        + (" and training seeds" if max(seeds, default=1) > 1 else "")
        + ", 10,000 draws; p: sign flips of the problems' differences."
    )
    if 1 in seeds:
        console.print("[yellow]One training seed on a side: this compares two trained models, not two methods.[/yellow]")


def as_json(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows of `compare` as JSON."""
    return json.dumps(rows, indent=1)
