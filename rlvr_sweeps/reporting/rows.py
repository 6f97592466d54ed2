"""From finished runs to rows: what tables, figures and the status show.

The seam between tables and where results are kept is `Result`: a run's summary row and its right samples by problem, both plain
data. `from_files` reads them from a run's directory; another source (W&B) supplies the same two for the same run names, and
every table comes out the same. Curves and samples are in the run's directory alone.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlvr_sweeps.config.identity import digest, evaluation_spec, science
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.reading import Row, RunStatus

Right = dict[str, Row]  # eval/right.json: benchmark -> k, golds (a hash), right (problem -> right samples, in order)
SEEDS = ("seed", "random_seed")  # the run's, and a method's own that is set to it


@dataclass(frozen=True)
class Result:
    """What a finished run says, wherever it is kept."""

    summary: Row  # summary.json
    right: Right


Source = Callable[[Run, Resolved], Result | None]  # None where the run is not evaluated as its configuration asks


def from_files(run: Run, cfg: Resolved) -> Result | None:
    """A run's result from its directory."""
    if run.state(cfg) == "new" or not run.is_done("evaluate", cfg):
        return None
    return Result(read_json(run.summary_path), read_json(run.right_path) or {})


@dataclass
class Cell:
    """Runs that differ in their seed alone: one row of a table."""

    cfg: Resolved
    summaries: list[Row] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    right: list[Right] = field(default_factory=list)  # by run, where the source gave it

    def value(self, column: str) -> float | None:
        """Mean over seeds; None where a seed has no such number."""
        values = [summary.get(column) for summary in self.summaries]
        known = [float(value) for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else None

    @property
    def stopped_early(self) -> list[str]:
        """A sentence on each run that did not take all its steps."""
        early = [summary for summary in self.summaries if summary.get("stopped_early")]
        return [f"{row['run']} was stopped after {row['steps_done']} steps: {row['stopped_early']}." for row in early]

    def error(self, column: str) -> float | None:
        """Standard error of that mean: from the spread of the seeds, or, of one seed, from its samples.

        All seeds are evaluated with the same random numbers, so runs that hardly differ err alike, and their spread hides it:
        where it is smaller than sampling alone would make it, the rest of the sampling variance is common to them and is added.
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


def cells(found: Sequence[RunStatus]) -> list[Cell]:
    """The evaluated runs that were evaluated alike, seeds together."""
    by_key: dict[str, Cell] = {}
    for item in found:
        if item.cfg is None or not item.evaluated:
            continue
        key = digest(row_of(item.cfg) | {"evaluation": evaluation_spec(item.cfg), "grader": item.summary.get("grader")})
        cell = by_key.setdefault(key, Cell(item.cfg))
        cell.summaries.append(item.summary)
        cell.runs.append(item.run)
    return sorted(by_key.values(), key=order)


def row_of(cfg: Resolved) -> dict[str, Any]:
    """What runs of one row share: their science, but for the seeds."""
    return {name: value for name, value in science(cfg).items() if name.rpartition(".")[2] not in SEEDS}


def order(cell: Cell) -> tuple[Any, ...]:
    """Base first, then by model, method, objective and dials."""
    cfg, dials = cell.cfg, ("rank", "alpha", "dropout", "lr", "batch_size", "steps")
    numbers = tuple(cell.summaries[0].get(dial) or 0 for dial in dials)
    return (is_trained(cfg), cfg["model"]["name"], cfg["peft"]["name"], cfg["algo"]["name"], numbers, cell.runs[0].name)


def benchmarks(found_cells: Sequence[Cell]) -> list[str]:
    """The benchmarks that any of the rows was evaluated on, in the order of their first appearance."""
    names: dict[str, None] = {}
    for cell in found_cells:
        names |= dict.fromkeys(cell.cfg["benchmark"])
    return list(names)


def reward_curves(cell: Cell) -> list[list[float]]:
    """Per seed, the mean reward of every step."""
    return [[row["reward_mean"] for row in read_rows(run.metrics_path)] for run in cell.runs]
