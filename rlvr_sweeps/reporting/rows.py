"""Group finished runs into cells: the rows that tables, figures and the status show.

Tables read a run only through `Result`: its summary row and its numbers of right samples by problem, both plain data.
`from_files` reads them from the run's directory; another source (W&B) returns equal data for equal run names, so the tables are
equal. Curves and samples exist only in the run's directory.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlvr_sweeps.config.identity import digest, evaluation_spec, science
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained, modules_of
from rlvr_sweeps.errors import Damaged
from rlvr_sweeps.files import Row, read_object, read_rows, refuse_incomplete
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.reading import RunStatus

Right = dict[str, Row]  # eval/right.json: benchmark -> k, golds (a hash), right (problem -> right samples, in order)
SEEDS = ("seed", "random_seed")  # the run's seed, and a setting of some methods that is set to the same value


@dataclass(frozen=True)
class Result:
    """The results of a finished run, from any source."""

    summary: Row  # summary.json
    right: Right


Source = Callable[[Run, Resolved], Result | None]  # None where the run is not evaluated as its configuration specifies


def from_files(run: Run, cfg: Resolved) -> Result | None:
    """Return a run's result from its directory; None where it is not evaluated as `cfg` specifies. Raises Damaged."""
    if run.state(cfg) == "new" or not run.is_done("evaluate", cfg):
        return None
    return Result(summary_of(run), run.right_samples() or {})


def summary_of(run: Run) -> Row:
    """Return the summary.json of an evaluated run; raise Damaged where it lacks a column that every summary has."""
    summary = read_object(run.summary_path, "run", "id", "trainable", "parameters", "evaluation")
    if summary is None:
        raise Damaged(run.summary_path, "it is missing")
    benchmarks = {key.partition("/")[0] for key in summary if "/" in key}
    refuse_incomplete(run.summary_path, summary, [f"{name}/{key}" for name in sorted(benchmarks) for key in ("n", "k")], "it")
    return summary


@dataclass
class Cell:
    """Runs that differ only in their seed: one row of a table."""

    cfg: Resolved
    summaries: list[Row] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    right: list[Right] = field(default_factory=list)  # by run, where the source supplies it

    def value(self, column: str) -> float | None:
        """Return the mean of a summary column over the seeds; None where a seed has no value."""
        values = [summary.get(column) for summary in self.summaries]
        known = [float(value) for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else None

    @property
    def stopped_early(self) -> list[str]:
        """Return a sentence for each run that was stopped before its last step."""
        early = [summary for summary in self.summaries if summary.get("stopped_early")]
        return [f"{row['run']} was stopped after {row['steps_done']} steps: {row['stopped_early']}." for row in early]

    def error(self, column: str) -> float | None:
        """Return the standard error of `value(column)`: from the spread of the seeds or, for one seed, from its samples.

        All seeds are evaluated with the same random numbers, so the sampling errors of similar runs are correlated. Where the
        variance over seeds is smaller than the sampling variance, the difference is common to all seeds and is added.
        """
        errors = [summary.get(f"{column}_se") for summary in self.summaries]
        if len(self.summaries) == 1:
            return None if errors[0] is None else float(errors[0])
        values = [summary.get(column) for summary in self.summaries]
        known = [float(value) for value in values if value is not None]
        if len(known) < len(values):
            return None
        spread = statistics.variance(known)
        known_errors = [float(error) for error in errors if error is not None]
        sampling = statistics.fmean(error**2 for error in known_errors) if len(known_errors) == len(values) else 0.0
        return float((spread / len(known) + max(0.0, sampling - spread)) ** 0.5)


def cells(runs: Sequence[RunStatus]) -> list[Cell]:
    """Return the evaluated runs as cells; runs of one cell differ only in their seed and were evaluated in the same way."""
    by_key: dict[str, Cell] = {}
    for status in runs:
        if status.cfg is None or not status.evaluated:
            continue
        key = digest(row_of(status.cfg) | {"evaluation": evaluation_spec(status.cfg), "grader": status.summary.get("grader")})
        cell = by_key.setdefault(key, Cell(status.cfg))
        cell.summaries.append(summary_of(status.run))
        cell.runs.append(status.run)
    return sorted(by_key.values(), key=order)


def row_of(cfg: Resolved) -> Row:
    """Return the settings that the runs of one row share: those that determine the run id, without the seeds."""
    return {name: value for name, value in science(cfg).items() if name.rpartition(".")[2] not in SEEDS}


def order(cell: Cell) -> tuple[Any, ...]:
    """Return the sort key of a cell: the base model first, then by model, method, objective and dials."""
    cfg, dials = cell.cfg, ("rank", "alpha", "dropout", "lr", "batch_size", "steps")
    numbers = tuple(cell.summaries[0].get(dial) or 0 for dial in dials)
    return (
        is_trained(cfg),
        cfg["model"]["name"],
        cfg["peft"]["name"],
        cfg["algo"]["name"],
        modules_of(cfg) or "",
        numbers,
        cell.runs[0].name,
    )


def benchmarks(rows: Sequence[Cell]) -> list[str]:
    """Return the benchmarks that any of the rows was evaluated on, in the order of their first appearance."""
    names: dict[str, None] = {}
    for cell in rows:
        names |= dict.fromkeys(cell.cfg["benchmark"])
    return list(names)


def reward_curves(cell: Cell) -> list[list[float]]:
    """Return the mean reward of every step, one list per seed."""
    return [[row["reward_mean"] for row in read_rows(run.metrics_path, "reward_mean")] for run in cell.runs]
