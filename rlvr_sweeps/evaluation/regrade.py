"""`rlvr regrade RUNS…`: grade the stored samples again, without a GPU, and print the changes."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlvr_sweeps.config.identity import evaluation_spec
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import averaged_benchmarks
from rlvr_sweeps.config.verifiers import verdicts_of, verifier_of
from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.evaluation.samples import SAMPLE_KEYS, score, summarise
from rlvr_sweeps.evaluation.scores import mean_of_benchmarks
from rlvr_sweeps.files import Row, read_object, read_rows, write_json, write_text
from rlvr_sweeps.grading.grader import VERSION, Verdict
from rlvr_sweeps.grading.rules import Rules
from rlvr_sweeps.grading.verifiers import Answered, Verifier
from rlvr_sweeps.runs.directory import Run

KEPT_KEYS = ("engine", "finished")  # keys of the summary that cannot be computed from the samples


@dataclass(frozen=True)
class Change:
    """A sample whose verdict, answer or reason has changed."""

    benchmark: str
    before: Row
    after: Row

    @property
    def kind(self) -> str:
        """The change in words: of the verdict, else `score`, else of the reason, else `answer`."""
        if self.before["correct"] != self.after["correct"]:
            return "wrong → correct" if self.after["correct"] else "correct → wrong"
        if self.before.get("score") != self.after.get("score"):
            return "score"
        return (
            f"{self.before['reason']} → {self.after['reason']}" if self.before["reason"] != self.after["reason"] else "answer"
        )


def new_verdicts(run: Run, cfg: Resolved, verifier: Verifier | None = None) -> dict[str, tuple[list[Row], list[Row]]]:
    """Return (stored samples, the same with the verdicts of this version of the verifier), by benchmark.

    `verifier`: the one by which to grade; None: that of the run.
    """
    samples = {}
    for name in cfg["benchmark"]:
        rows = read_rows(run.samples_path(name), *SAMPLE_KEYS)
        verdicts = verdicts_of(cfg, answered(run, cfg, name, rows), verifier)
        samples[name] = (
            rows,
            [
                {key: value for key, value in row.items() if key != "score"}
                | {"answer": verdict.answer, "correct": verdict.correct, "reason": verdict.reason}
                | score_of(verdict)
                for row, verdict in zip(rows, verdicts, strict=True)
            ],
        )
    return samples


def answered(run: Run, cfg: Resolved, benchmark: str, rows: Sequence[Row]) -> list[Answered]:
    """Return stored samples of a benchmark as a verifier reads them, with the columns that the evaluation stored."""
    if verifier_of(cfg).is_math:
        return [Answered(row["text"], row["gold"]) for row in rows]
    questions = (read_object(run.questions_path) or {}).get(benchmark, {})
    missing = [row["problem"] for row in rows if len(questions.get(row["problem"], ())) < 3]
    if missing:
        raise Damaged(run.questions_path, f"it lacks the columns of problem {missing[0]} of {benchmark}")
    return [Answered(row["text"], row["gold"], questions[row["problem"]][2]) for row in rows]


def score_of(verdict: Verdict) -> Row:
    """Return the column with the score of a reward function; none for the project's grader, where `correct` says all."""
    return {} if verdict.score is None else {"score": verdict.score}


def write_samples(run: Run, benchmark: str, rows: Sequence[Row]) -> None:
    """Replace a benchmark's samples by `rows`."""
    write_text(run.samples_path(benchmark), "".join(json.dumps(row) + "\n" for row in rows))


def average(verdicts: dict[str, tuple[list[Row], list[Row]]], cfg: Resolved) -> float:
    """Return the average over the benchmarks of what `new_verdicts` returned."""
    names = averaged_benchmarks(verdicts)
    averages = [score(verdicts[name][1], cfg["benchmark"][name]["k"], name)["avg"] for name in names]
    return mean_of_benchmarks(averages, [math.nan] * len(names))[0]


def regrade(run: Run, dry_run: bool = False, rules: Rules | None = None) -> tuple[list[Change], Row, Row]:
    """Return (changes, summary before, summary after); unless `dry_run` or with other rules, write the new verdicts.

    `rules`: those by which the project's grader grades; None: those of the run. With `dry_run`, or with `rules`, of the
    summary after only the average is that of the new verdicts.
    The old files are copied to the run's old/. Raises Refused where the run is running, or is not evaluated as configured.
    """
    cfg, before = run.config(), read_object(run.summary_path, "evaluation")
    if before is None:
        raise Refused(f"{run.name} is not evaluated yet. Run its launch command to the end first.")
    if before["evaluation"] != evaluation_spec(cfg):
        raise Refused(
            f"{run.name} was configured for another evaluation since its samples were written. Run its launch command first, "
            "which evaluates it."
        )
    with run.claim() as is_claimed:
        if not is_claimed:
            raise Refused(f"{run.name} is running. Regrade it when it is done.")
        verifier = None if rules is None else with_rules(run, cfg, rules)
        verdicts = new_verdicts(run, cfg, verifier)
        changes = [
            Change(name, old, new)
            for name, (olds, news) in verdicts.items()
            for old, new in zip(olds, news, strict=True)
            if old != new
        ]
        if dry_run or rules:
            return changes, before, before | {"avg": average(verdicts, cfg)}
        if not (changes or before.get("grader") != VERSION or not run.right_path.exists()):
            return changes, before, before
        run.keep_copies([*(run.samples_path(name) for name in verdicts), run.summary_path], "regraded")
        for name, (_, rows) in verdicts.items():  # files are replaced one by one; after a kill, the same command continues
            write_samples(run, name, rows)
        after = summarise(run, cfg) | {key: before[key] for key in KEPT_KEYS if key in before}
        write_json(run.summary_path, after)
    return changes, before, after


def with_rules(run: Run, cfg: Resolved, rules: Rules) -> Verifier:
    """Return the run's verifier with other rules; raise Refused where none of its parts reads them."""
    verifier = verifier_of(cfg)
    if not any(part.is_math for part in verifier.parts):
        raise Refused(
            f"{run.name} is judged by {verifier.label()}, which does not read answers=. Leave --answers out: rlvr regrade "
            "judges its samples again."
        )
    return replace(verifier, rules=rules)


def as_facts(run: Run, changes: Sequence[Change], before: Row, after: Row) -> Row:
    """Return the changes and averages of a run for `--json`."""
    changed = [{"benchmark": change.benchmark, "before": change.before, "after": change.after} for change in changes]
    return {"run": run.name, "avg_before": before["avg"], "avg_after": after["avg"], "changes": changed}


def show(run: Run, changes: Sequence[Change], before: Row, after: Row, console: Console) -> None:
    """Print the counts, the averages, and a table of at most 20 changes, changed verdicts first."""
    kinds = Counter(change.kind for change in changes)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "no verdict changed"
    console.print(f"{run.name}: {counts}", highlight=False, soft_wrap=True)
    if before.get("avg") != after.get("avg"):
        console.print(f"  average {100 * before['avg']:.2f} → {100 * after['avg']:.2f} %", highlight=False)
    if changes:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("benchmark", "problem", "sample", "gold", "answer", "before", "after"):
            table.add_column(column, overflow="ellipsis", no_wrap=True)
        for change in sorted(changes, key=lambda change: change.before["correct"] == change.after["correct"])[:20]:
            row = change.after
            cells = (change.benchmark, row["problem"], str(row["sample"]), row["gold"], row["answer"] or "-")
            table.add_row(*(Text(printable(cell)) for cell in (*cells, change.before["reason"], row["reason"])))
        console.print(table)
        if len(changes) > 20:
            console.print(f"  and {len(changes) - 20} more", highlight=False)


def printable(text: str) -> str:
    """Return text that a terminal can show: lone surrogates, which cannot be encoded, become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
