"""`rlvr compare A B…`: paired differences to the first, by benchmark and overall, from the runs' samples."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rlvr_sweeps.collect import named_run
from rlvr_sweeps.differences import Array, Difference, difference, holm
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.identity import Resolved, evaluation_spec
from rlvr_sweeps.run import Run

MUST_BE_EQUAL = (
    ("benchmarks, k or decoding", "Evaluate them alike"),
    ("versions of the grader", "Bring both to one version: rlvr regrade"),
    ("problems", "Use the same data on both machines"),
)


@dataclass
class Side:
    """One arm: a run, or several that differ in their seed."""

    label: str
    runs: list[Run]
    cfg: Resolved
    scores: dict[str, Array] = field(default_factory=dict)  # benchmark -> p̂, (seeds, problems)


def read_side(argument: str, runs_dir: Path) -> Side:
    """`argument` names a run, or several seeds of it with commas between them."""
    runs = [named_run(name, runs_dir) for name in argument.split(",")]
    cfgs = [run.config() for run in runs]
    side = Side(runs[0].name if len(runs) == 1 else f"{runs[0].name} (+{len(runs) - 1} seeds)", runs, cfgs[0])
    for name in cfgs[0]["benchmark"]:
        side.scores[name] = np.stack([shares(run, name) for run in runs])
    return side


def shares(run: Run, benchmark: str) -> Array:
    """Share of right samples by problem, in the order of the file, which is the benchmark's."""
    right: dict[str, list[bool]] = {}
    for row in read_rows(run.samples_path(benchmark)):
        right.setdefault(row["problem"], []).append(row["correct"])
    if not right:
        raise Refused(f"{run.name} has no samples of {benchmark}. Evaluate it first: the command that trained it goes on.")
    return np.array([np.mean(samples) for samples in right.values()])


def request_of(run: Run) -> tuple[Any, ...]:
    """What must be equal for two runs to compare: the request, the grader, and the problems themselves."""
    summary = read_json(run.summary_path)
    if summary is None:
        raise Refused(f"{run.name} is not evaluated yet.")
    cfg = run.config()
    problems = tuple(
        tuple(dict.fromkeys(row["problem"] for row in read_rows(run.samples_path(name)))) for name in cfg["benchmark"]
    )
    return evaluation_spec(cfg), summary.get("grader"), problems


def refuse_unlike(sides: Sequence[Side]) -> None:
    runs = [run for side in sides for run in side.runs]
    first = request_of(runs[0])
    for run in runs[1:]:
        other = request_of(run)
        for (what, cure), one, another in zip(MUST_BE_EQUAL, first, other, strict=True):
            if one != another:
                raise Refused(f"{runs[0].name} and {run.name} were evaluated with different {what}. {cure}.")


def compare(arguments: Sequence[str], runs_dir: Path) -> list[dict[str, Any]]:
    """One row per later side and benchmark (and `overall`): both averages, the difference, its interval, p, Holm's p."""
    sides = [read_side(argument, runs_dir) for argument in arguments]
    refuse_unlike(sides)
    base, rows = sides[0], []
    for name in [*base.scores, "overall"]:
        found: list[tuple[Side, Difference]] = []
        for side in sides[1:]:
            found.append((side, difference(tables(side, name), tables(base, name))))
        adjusted = holm([result.p for _, result in found])
        for (side, result), p in zip(found, adjusted, strict=True):
            rows.append({
                "benchmark": name, "a": base.label, "b": side.label, "a_avg": average(base, name), "b_avg": average(side, name),
                "difference": result.value, "low": result.low, "high": result.high, "p": result.p, "p_holm": p,
                "seeds": [len(base.runs), len(side.runs)],
            })  # fmt: skip
    return rows


def tables(side: Side, name: str) -> list[Array]:
    return list(side.scores.values()) if name == "overall" else [side.scores[name]]


def average(side: Side, name: str) -> float:
    return float(np.mean([table.mean() for table in tables(side, name)]))


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
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
    console.print(
        "Paired by problem. Interval: hierarchical bootstrap over problems"
        + (" and training seeds" if max(max(row["seeds"]) for row in rows) > 1 else "")
        + ", 10,000 draws; p: sign flips of the problems' differences."
    )
    if min(min(row["seeds"]) for row in rows) == 1:
        console.print("[yellow]One training seed on a side: this compares two trained models, not two methods.[/yellow]")


def as_json(rows: Sequence[dict[str, Any]]) -> str:
    return json.dumps(rows, indent=1)
