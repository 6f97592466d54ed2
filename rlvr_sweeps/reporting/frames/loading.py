"""Load a folder of runs as pandas tables: runs, optimizer steps, evaluation samples, and kept completions of the training."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd

from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.evaluation.samples import SAMPLE_KEYS, right_by_problem
from rlvr_sweeps.files import Row, read_object, read_rows
from rlvr_sweeps.reporting.frames import dtypes
from rlvr_sweeps.reporting.frames.settings import NAMED, named_settings, varying_settings
from rlvr_sweeps.reporting.rows import benchmarks, cells, summary_of
from rlvr_sweeps.runs.reading import RunStatus, find_runs
from rlvr_sweeps.runs.rollouts import SHARE

KEYS = ("run", "id", "state", "error", "evaluated", "sweep")  # the first columns of the table of runs
NOT_IN_ROLLOUTS = ("prompt", "text")  # without `text=True`
TABLES = ("runs", "steps", "samples")  # of `rlvr report --parquet`
RESULTS = (  # of the table of runs, also where no run is evaluated
    "trainable", "parameters", "reward_first", "reward_last", "steps_done", "stopped_early", "train_seconds", "reach",
    "bfloat16_error", "update_kept", "avg", "avg_se",
)  # fmt: skip
T = TypeVar("T")


class LoadedRuns:
    """The runs of a folder as pandas tables. docs/analysis.md lists the columns with their units.

    runs: one row per run. cells: one row per row of the report, with the means over its seeds. steps: one row per run and
    optimizer step. samples: one row per evaluation sample. rollouts: one row per completion that the training kept. Each table
    is read from the files at its first use and then kept; `run`, the name of the run's directory, is the key that joins them.

    A run with a damaged file is a row of `runs` with the state `unreadable`, the file in `error`, and no numbers; it has no
    rows in the other tables. A file is examined when its table is read: such a run may appear after `steps` or `samples`.
    """

    def __init__(self, folder: Path, statuses: Sequence[RunStatus]) -> None:
        self.folder = folder
        self._statuses = {status.run.name: status for status in statuses}
        configurations = {name: status.cfg for name, status in self._statuses.items() if status.cfg is not None}
        varying = varying_settings(list(configurations.values()))
        self._settings = {
            name: named_settings(cfg) | values for (name, cfg), values in zip(configurations.items(), varying, strict=True)
        }
        self.settings = [*NAMED, *(varying[0] if varying else ())]
        self._tables: dict[str, pd.DataFrame] = {}
        self._results: dict[str, Row] = {}
        for name in self._statuses:
            self._results[name] = self._readable(name, result_of) or {}

    def __repr__(self) -> str:
        states = self.runs["state"].value_counts(sort=False)
        return f"{len(self._statuses)} runs in {self.folder}: {', '.join(f'{n} {state}' for state, n in states.items() if n)}"

    @property
    def runs(self) -> pd.DataFrame:
        """One row per run, sorted by name: its state, its settings, and its results once it is evaluated."""
        return self._kept("runs", self._read_runs)

    @property
    def cells(self) -> pd.DataFrame:
        """One row per row of the report, the evaluated runs that differ only in their seed: means and their standard errors.

        The errors are those of the tables: seeds share the random numbers of their evaluation, so the standard deviation over
        seeds alone may be too small.
        """
        return self._kept("cells", self._read_cells)

    @property
    def steps(self) -> pd.DataFrame:
        """One row per run and optimizer step: the run's settings, and every column of metrics.jsonl.

        A metric with the name of a setting has the prefix `step_`: `lr` is the setting, `step_lr` the rate of the step.
        """
        return self._kept("steps", lambda: self._read(self._steps_of, dtypes.STEPS, ("step",), settings=True))

    @property
    def samples(self) -> pd.DataFrame:
        """One row per sample of the evaluated runs, without the text."""
        return self._kept("samples", self.read_samples)

    @property
    def rollouts(self) -> pd.DataFrame:
        """One row per completion that the training kept (`training.samples_per_step` of each step), without the text."""
        return self._kept("rollouts", self.read_rollouts)

    @property
    def unreadable(self) -> list[str]:
        """A sentence for each run that is left out because a file is damaged, as far as the files were read."""
        return [f"{name} is unreadable: {s.error}" for name, s in self._statuses.items() if s.state == "unreadable"]

    def read_samples(self, text: bool = False, benchmarks: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the samples, read again; `text`: with the completion's text; `benchmarks`: only those, by default all."""
        return self._read(lambda status: samples_of(status, text, benchmarks), dtypes.SAMPLES, dtypes.SAMPLES)

    def read_rollouts(self, text: bool = False) -> pd.DataFrame:
        """Return the kept completions of the training, read again; `text`: with prompt and text (long ones without middle)."""
        return self._read(lambda status: rollouts_of(status, text), dtypes.ROLLOUTS, dtypes.ROLLOUTS)

    def with_settings(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return a table that has a column `run` with the settings of its runs as further columns, to group by."""
        columns = ["run", *(name for name in self.settings if name not in table)]
        return table.merge(self.runs[columns], on="run", how="left")

    def write_parquet(self, folder: Path) -> dict[str, Path]:
        """Write runs, steps and samples as .parquet files into a folder; return the path of each table by its name."""
        folder.mkdir(parents=True, exist_ok=True)
        tables = {name: getattr(self, name) for name in reversed(TABLES)}  # runs last: the other tables may find damages
        paths = {name: folder / f"{name}.parquet" for name in TABLES}
        for name, path in paths.items():
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                tables[name].to_parquet(temporary, engine="pyarrow", compression="zstd", index=False)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        return paths

    def _kept(self, name: str, read: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Return a table, read at its first use, without the rows of runs that have proved damaged since."""
        if name not in self._tables:
            self._tables[name] = read()
        return self._tables[name]

    def _readable(self, name: str, read: Callable[[RunStatus], T]) -> T | None:
        """Return what `read` returns for a run; None where the run is unreadable or edited, or where a file proves damaged."""
        status = self._statuses[name]
        if status.cfg is None or status.state == "unreadable":
            return None
        try:
            return read(status)
        except Damaged as damage:
            self._leave_out(name, damage)
            return None

    def _leave_out(self, name: str, damage: Damaged) -> None:
        """Mark a run as unreadable, and remove its numbers from the tables that were read before."""
        self._statuses[name] = self._statuses[name].unreadable(damage)
        self._results[name] = {}
        for table_of_runs in ("runs", "cells"):
            self._tables.pop(table_of_runs, None)
        for kept, table in self._tables.items():
            self._tables[kept] = table[table["run"] != name].reset_index(drop=True)

    def _read_runs(self) -> pd.DataFrame:
        """Return the table of runs."""
        rows = []
        for name, status in self._statuses.items():
            result = self._results[name]
            facts: Row = {"id": status.run.id, "state": status.state, "error": status.error or None}
            facts |= {"evaluated": "evaluation" in result, "sweep": status.cfg["sweep"] if status.cfg else None}
            rows.append({**facts, **self._settings.get(name, {}), **result})
        table = dtypes.frame(rows, dtypes.RUNS, [*KEYS[1:], *self.settings, *RESULTS])
        numbers = [column for column in table if table[column].dtype == dtypes.FLOAT]
        shares = [column for column in numbers if column.partition("/")[2].startswith(SHARE)]
        for column in shares:  # a reason that no sample has is not in the summary of the run
            table[column] = table[column].mask(table[f"{column.partition('/')[0]}/n"].notna() & table[column].isna(), 0.0)
        if "finished" in numbers:
            table["finished"] = pd.to_datetime(table["finished"], unit="s", utc=True)
        table.insert(0, "run", self._names(list(self._statuses)))
        return table

    def _read_cells(self) -> pd.DataFrame:
        """Return the table of cells."""
        rows = cells([status for name, status in self._statuses.items() if "evaluation" in self._results[name]])
        means = ["avg", *(f"{name}/avg" for name in benchmarks(rows))]
        entries = []
        for cell in rows:
            entry = {name: value for name, value in self._settings[cell.runs[0].name].items() if name != "seed"}
            entry |= {"seeds": len(cell.runs), "runs": ", ".join(run.name for run in cell.runs)}
            for column in means:
                entry |= {column: cell.value(column), f"{column}_se": cell.error(column)}
            entries.append(entry)
        return dtypes.frame(
            entries, dtypes.RUNS | dtypes.CELLS, [*(name for name in self.settings if name != "seed"), *dtypes.CELLS]
        )

    def _read(
        self,
        read: Callable[[RunStatus], pd.DataFrame],
        types: dict[str, str],
        first: Iterable[str],
        settings: bool = False,
    ) -> pd.DataFrame:
        """Return the tables that `read` returns for the runs, below each other; with `settings`, those follow the run."""
        parts = {name: part for name in self._statuses if (part := self._readable(name, read)) is not None}
        table = dtypes.joined(list(parts.values()), types, first)
        names = [name for name, part in parts.items() for _ in range(len(part))]
        table.insert(0, "run", self._names(names))
        if not settings:
            return table
        known = self.with_settings(table[["run"]])
        return pd.concat([known, table.drop(columns="run")], axis=1)

    def _names(self, names: Sequence[str]) -> pd.Categorical:
        """Return names of runs as a column; its categories are the same in all tables, so that they can be merged."""
        return pd.Categorical(names, categories=list(self._statuses))

    def _steps_of(self, status: RunStatus) -> pd.DataFrame:
        """Return the rows of a run's metrics.jsonl; a reason that no completion of a step has is a share of 0."""
        rows = read_rows(status.run.metrics_path, "step", "reward_mean")
        shares = dict.fromkeys((name for row in rows for name in row if name.startswith(SHARE)), 0.0)
        renamed = [
            {f"step_{name}" if name in self.settings else name: value for name, value in (row | (shares | row)).items()}
            for row in rows
        ]
        return part_of(renamed, dtypes.STEPS)


def load(folder: str | Path, sweep: str | None = None) -> LoadedRuns:
    """Return the runs of a folder as tables; `sweep`: only those whose last launch had this label.

    The states are those of the files: Slurm is not asked. Raise Refused where there is no such folder, or no run with
    the label.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise Refused(f"{folder} is not a folder. Give the folder of the runs: rlvr_sweeps.load('/path/to/runs').")
    statuses = find_runs(folder)
    if sweep is None:
        return LoadedRuns(folder, statuses)
    chosen = [status for status in statuses if status.cfg and status.cfg["sweep"] == sweep]
    if not chosen:
        labels = sorted({status.cfg["sweep"] for status in statuses if status.cfg and status.cfg["sweep"]})
        raise Refused(f"No run in {folder} has the sweep label {sweep}. Labels: {', '.join(labels) or 'none'}.")
    return LoadedRuns(folder, chosen)


def result_of(status: RunStatus) -> Row:
    """Return an evaluated run's summary.json, as the report shows it; of another run the parameter counts, once they are known.

    Raises Damaged.
    """
    if status.evaluated:
        summary = summary_of(status.run)
        return {name: value for name, value in summary.items() if name not in (*KEYS, *NAMED)}
    record = read_object(status.run.record_path) or {}
    counts = record.get("parameters") or {}
    return {"trainable": counts.get("trainable"), "parameters": counts.get("base")}


def samples_of(status: RunStatus, text: bool, only: Sequence[str] | None) -> pd.DataFrame:
    """Return the samples of an evaluated run; none where it is not evaluated, or where the files of samples were deleted.

    Raises Damaged where a file cannot be read, or its verdicts are not those of right.json, from which tables are made.
    """
    parts = []
    evaluated = status.cfg is not None and status.evaluated
    right = (status.run.right_samples() or {}) if evaluated else {}
    for name in status.cfg["benchmark"] if status.cfg is not None and evaluated else ():
        path = status.run.samples_path(name)
        if (only is not None and name not in only) or not path.exists():
            continue
        rows = read_rows(path, *SAMPLE_KEYS)
        if name in right and right_by_problem(rows) != right[name]["right"]:
            raise Damaged(path, f"its verdicts differ from those in {status.run.right_path.name}")
        parts.append(part_of([sample_row(row, name, text) for row in rows], dtypes.SAMPLES))
    return dtypes.joined(
        parts, {name: dtypes.PARTS.get(dtype, dtype) for name, dtype in dtypes.SAMPLES.items()}, dtypes.SAMPLES
    )


def sample_row(row: Row, benchmark: str, text: bool) -> Row:
    """Return a row of eval/<benchmark>.jsonl as a row of the table; `sample_seed` is its `seed`, None in older files."""
    columns = (
        "sample",
        "sample_seed",
        "answer",
        "gold",
        "correct",
        "reason",
        "tokens",
        "truncated",
        *(["score"] if "score" in row else []),
        *(["text"] if text else []),
    )
    values = row | {"sample_seed": row.get("seed")}
    return {"benchmark": benchmark, "problem": row["problem"], **{name: values[name] for name in columns}}


def rollouts_of(status: RunStatus, text: bool) -> pd.DataFrame:
    """Return the completions that a run's training kept; raise Damaged."""
    rows = read_rows(status.run.rollouts_path, "step", "correct")
    left_out = () if text else NOT_IN_ROLLOUTS
    return part_of([{name: value for name, value in row.items() if name not in left_out} for row in rows], dtypes.ROLLOUTS)


def part_of(rows: Sequence[Row], types: dict[str, str]) -> pd.DataFrame:
    """Return rows as a table that will be joined with those of other runs."""
    return dtypes.frame(rows, {name: dtypes.PARTS.get(dtype, dtype) for name, dtype in types.items()})
