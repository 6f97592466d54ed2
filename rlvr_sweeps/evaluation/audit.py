"""`rlvr audit RUNS…`: a second, independent opinion on a sample of verdicts, and the disagreements listed.

The second reader shares nothing with the grader but sympy's arithmetic: sympy's own LaTeX grammar (lark) reads both sides, and
they are compared by their value, at random points where they have variables. It has no opinion on what it cannot read, and
none on form: where the grader says `wrong form`, a disagreement shows what the policy costs.
"""

import json
import random
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.evaluation.regrade import printable
from rlvr_sweeps.files import read_rows
from rlvr_sweeps.grading.sandbox import opinions
from rlvr_sweeps.runs.directory import Run

Row = dict[str, Any]


def audit(runs: Sequence[Run], size: int, seed: int) -> tuple[list[Row], int]:
    """(`size` random samples with an answer in a box, each with the second opinion; how many there were).

    opinion: same, different, or None where the second reader cannot read a side. Distinct (answer, gold) pairs, drawn so that
    every reason has the same chance, since integers that are plainly right or wrong need no audit.
    """
    found: dict[tuple[str, str], Row] = {}
    for run in runs:
        for name in run.config()["benchmark"]:
            for row in read_rows(run.samples_path(name)):
                if row["answer"] is not None:
                    found.setdefault((row["answer"], row["gold"]), row | {"run": run.name, "benchmark": name})
    if not found:
        raise Refused("There is no sample with an answer in these runs.")
    by_reason: dict[str, list[Row]] = {}
    for row in found.values():
        by_reason.setdefault(row["reason"], []).append(row)
    rng = random.Random(seed)
    for rows in by_reason.values():
        rng.shuffle(rows)
    drawn: list[Row] = []
    while len(drawn) < min(size, len(found)):
        drawn += [rows.pop() for rows in by_reason.values() if rows]
    drawn = drawn[:size]
    second = opinions([(row["answer"], row["gold"]) for row in drawn])
    return [row | {"opinion": opinion} for row, opinion in zip(drawn, second, strict=True)], len(found)


def disagrees(row: Row) -> bool:
    return row["opinion"] is not None and row["correct"] != (row["opinion"] == "same")


def show(rows: Sequence[Row], total: int, console: Console) -> None:
    read = [row for row in rows if row["opinion"] is not None]
    apart = [row for row in rows if disagrees(row)]
    console.print(
        f"{len(rows)} of {total} distinct answers audited: {len(read)} read by the second reader, "
        f"{len(read) - len(apart)} agreements, {len(apart)} disagreements",
        highlight=False,
    )
    if not apart:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("run", "benchmark", "problem", "sample", "gold", "answer", "verdict", "second opinion"):
        table.add_column(column, overflow="fold")
    for row in apart:
        cells = [str(row[key]) for key in ("run", "benchmark", "problem", "sample", "gold", "answer", "reason", "opinion")]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(table)


def as_json(rows: Sequence[Row]) -> str:
    return json.dumps([row | {"disagrees": disagrees(row)} for row in rows], indent=1)
