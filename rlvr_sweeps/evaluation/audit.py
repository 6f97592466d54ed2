"""`rlvr audit RUNS…`: compare a sample of verdicts with a second, independent reader, and list the disagreements.

Verdicts of reward functions are compared with those that the same function gives again, to the sample alone and in a new
process: a function that depends on time, on random numbers or on what it judged before disagrees with itself.

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

from rlvr_sweeps.config.verifiers import verdicts_of, verifier_of
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.evaluation.regrade import answered, printable
from rlvr_sweeps.evaluation.samples import SAMPLE_KEYS
from rlvr_sweeps.files import Row, read_rows
from rlvr_sweeps.grading import reward_pool
from rlvr_sweeps.grading.sandbox import opinions
from rlvr_sweeps.runs.directory import Run


def audit(runs: Sequence[Run], size: int, seed: int) -> tuple[list[Row], int]:
    """Return `size` random samples with a boxed answer, each with the second opinion, and the number of distinct samples.

    opinion: same, different, or None where the second reader cannot parse a side. Samples are distinct (answer, gold) pairs, of
    reward functions distinct (text, problem) pairs, drawn equally from all reasons, since most are integers that need no audit.
    Raises Refused where no sample has an answer.
    """
    samples: dict[tuple[str, ...], Row] = {}
    for run in runs:
        is_math = verifier_of(run.config()).is_math
        for name in run.config()["benchmark"]:
            for row in read_rows(run.samples_path(name), *SAMPLE_KEYS):
                key = (row["answer"], row["gold"]) if is_math else (run.name, row["text"], row["problem"])
                if not is_math or row["answer"] is not None:
                    samples.setdefault(key, row | {"run": run.name, "benchmark": name})
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
    return with_opinions(runs, drawn), len(samples)


def with_opinions(runs: Sequence[Run], rows: Sequence[Row]) -> list[Row]:
    """Return the rows with their second opinions."""
    by_name = {run.name: run for run in runs}
    is_math = {name: verifier_of(run.config()).is_math for name, run in by_name.items()}
    compared = [row for row in rows if is_math[row["run"]]]
    second = iter(opinions([(row["answer"], row["gold"]) for row in compared]))
    reward_pool.close()  # so that no process has judged anything before
    return [row | {"opinion": next(second) if is_math[row["run"]] else judged_again(by_name[row["run"]], row)} for row in rows]


def judged_again(run: Run, row: Row) -> str:
    """Return `same` where the run's reward functions accept a sample that they judge alone, else `different`."""
    cfg = run.config()
    (verdict,) = verdicts_of(cfg, answered(run, cfg, row["benchmark"], [row]))
    return "same" if verdict.correct else "different"


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
