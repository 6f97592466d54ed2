"""`rlvr audit RUNS…`: compare a sample of verdicts with a second, independent reader, and list the disagreements.

The second reader shares only sympy's arithmetic with the grader: sympy's own LaTeX grammar (lark) parses both answers, and they
are compared by their value, at random points where they have variables. It returns no opinion where it cannot parse a side, and
does not judge the form: a disagreement with the verdict `wrong form` shows what the required form costs.
"""

import json
import random
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.evaluation.regrade import printable
from rlvr_sweeps.evaluation.samples import SAMPLE_KEYS
from rlvr_sweeps.files import Row, read_rows
from rlvr_sweeps.grading.sandbox import opinions
from rlvr_sweeps.runs.directory import Run


def audit(runs: Sequence[Run], size: int, seed: int) -> tuple[list[Row], int]:
    """Return `size` random samples with a boxed answer, each with the second opinion, and the number of distinct samples.

    opinion: same, different, or None where the second reader cannot parse a side. Samples are distinct (answer, gold) pairs,
    drawn equally from all reasons, since most are integers that need no audit. Raises Refused where no sample has an answer.
    """
    samples: dict[tuple[str, str], Row] = {}
    for run in runs:
        for name in run.config()["benchmark"]:
            for row in read_rows(run.samples_path(name), *SAMPLE_KEYS):
                if row["answer"] is not None:
                    samples.setdefault((row["answer"], row["gold"]), row | {"run": run.name, "benchmark": name})
    if not samples:
        raise Refused("No sample of these runs has an answer in a box. Evaluate them first, or name other runs.")
    by_reason: dict[str, list[Row]] = {}
    for row in samples.values():
        by_reason.setdefault(row["reason"], []).append(row)
    rng = random.Random(seed)
    for rows in by_reason.values():
        rng.shuffle(rows)
    drawn: list[Row] = []
    while len(drawn) < min(size, len(samples)):
        drawn += [rows.pop() for rows in by_reason.values() if rows]
    drawn = drawn[:size]
    second = opinions([(row["answer"], row["gold"]) for row in drawn])
    return [row | {"opinion": opinion} for row, opinion in zip(drawn, second, strict=True)], len(samples)


def disagrees(row: Row) -> bool:
    """Return whether the second reader has an opinion and it differs from the verdict."""
    return row["opinion"] is not None and row["correct"] != (row["opinion"] == "same")


def show(rows: Sequence[Row], total: int, console: Console) -> None:
    """Print the counts and a table of the disagreements."""
    parsed = [row for row in rows if row["opinion"] is not None]
    disagreements = [row for row in rows if disagrees(row)]
    console.print(
        f"{len(rows)} of {total} distinct answers audited: {len(parsed)} read by the second reader, "
        f"{len(parsed) - len(disagreements)} agreements, {len(disagreements)} disagreements",
        highlight=False,
    )
    if not disagreements:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("run", "benchmark", "problem", "sample", "gold", "answer", "verdict", "second opinion"):
        table.add_column(column, overflow="fold")
    for row in disagreements:
        cells = [str(row[key]) for key in ("run", "benchmark", "problem", "sample", "gold", "answer", "reason", "opinion")]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(table)


def as_json(rows: Sequence[Row]) -> str:
    """Return the audited samples as JSON, each with the key `disagrees`."""
    return json.dumps([row | {"disagrees": disagrees(row)} for row in rows], indent=1)
