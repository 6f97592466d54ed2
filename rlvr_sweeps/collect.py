"""From run directories to rows: what tables, figures and the status show. Reads files alone."""

import difflib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.identity import Resolved, digest, evaluation_spec, is_trained, science
from rlvr_sweeps.run import Run, all_runs
from rlvr_sweeps.slurm import Live

Row = dict[str, Any]
SEEDS = ("seed", "random_seed")  # the run's, and a method's own that is set to it


@dataclass(frozen=True)
class Found:
    """A run on disk, its configuration (None where that was edited) and its state."""

    run: Run
    cfg: Resolved | None
    state: str
    error: str = ""

    @property
    def summary(self) -> Row:
        return read_json(self.run.summary_path) or {}

    @property
    def evaluated(self) -> bool:
        """Whether its scores are what its configuration asks for; its analysis may still be under way, or have failed."""
        return self.cfg is not None and (self.state == "done" or self.run.is_done("evaluate", self.cfg))


@dataclass
class Cell:
    """Runs that differ in their seed alone: one row of a table."""

    cfg: Resolved
    summaries: list[Row] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def value(self, column: str) -> float | None:
        """Mean over seeds; None where a seed has no such number."""
        values = [summary.get(column) for summary in self.summaries]
        known = [float(value) for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else None

    def error(self, column: str) -> float | None:
        """Standard error of that mean: from the spread of the seeds, or, of one seed, from its samples."""
        if len(self.summaries) == 1:
            error = self.summaries[0].get(f"{column}_se")
            return None if error is None else float(error)
        values = [summary.get(column) for summary in self.summaries]
        known = [float(value) for value in values if value is not None]
        return statistics.stdev(known) / len(known) ** 0.5 if len(known) == len(values) else None


def find(runs_dir: Path, live: Live | None = None) -> list[Found]:
    """Every run under a folder with its state; `live`: the jobs that Slurm has."""
    found = []
    for run in all_runs(runs_dir):
        try:
            cfg = run.config()
            state = run.state(cfg, live)
            failure = read_json(run.failure_path) if state == "failed" else None
            found.append(Found(run, cfg, state, failure["error"] if failure else ""))
        except Refused as refusal:
            found.append(Found(run, None, "edited", str(refusal)))
    return found


def named_run(name: str, runs_dir: Path) -> Run:
    """A run by its directory, its name or its id; Refused, with the nearest name, where there is no such run."""
    for path in (Path(name), runs_dir / name):
        if (path / "config.yaml").exists():
            return Run(path.absolute())
    runs = all_runs(runs_dir)
    by_id = [run for run in runs if run.id == name]
    if len(by_id) == 1:
        return by_id[0]
    near = difflib.get_close_matches(name, [run.name for run in runs], 1, 0.3)
    raise Refused(f"There is no run {name} in {runs_dir}." + (f" Did you mean {near[0]}?" if near else ""))


def cells(found: Sequence[Found]) -> list[Cell]:
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
