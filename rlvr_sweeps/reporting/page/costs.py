"""Compute each row's cost from its runs' files: device hours, generated tokens and seconds by phase."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.files import read_object, read_rows
from rlvr_sweeps.reporting.rows import Cell
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.reading import PHASES

ENDS = ("stopped", "failed", "done")  # events that close an attempt


@dataclass(frozen=True)
class Cost:
    """The cost of one run; None where the file that holds a number is missing."""

    wall_s: float  # of all attempts with a recorded end
    open_attempts: int  # attempts with no recorded end; their time is not counted
    attempts: int
    device_hours: float
    device: str | None  # a GPU's name; None without a GPU, where each process uses one core
    phases_s: dict[str, float]
    evaluate_s: float | None
    trained_tokens: float | None
    evaluated_tokens: float | None


def cost(run: Run, cell: Cell, summary: dict[str, Any]) -> Cost:
    """Return the cost of a finished run of the row `cell`, over all of its attempts."""
    cfg = cell.cfg
    steps = read_rows(run.metrics_path, "completion_tokens_mean", "sampled_groups")
    wall_s, open_attempts, attempts = time_of_attempts(read_rows(run.attempts_path, "event", "time"))
    record = read_object(run.record_path) or {}
    processes = record.get("built", {}).get("processes", cfg["distributed"]["processes"])
    device = record.get("surroundings", {}).get("device")
    sharing = cfg["cluster"].get("runs_per_gpu", 1) if device else 1
    sampled = [
        row["completion_tokens_mean"] * row["sampled_groups"] * cfg["rollout"]["group_size"] + row.get("discarded_tokens", 0)
        for row in steps
    ]
    evaluated = [
        summary[f"{name}/tokens_mean"] * summary[f"{name}/n"] * summary[f"{name}/k"]
        for name in cfg["benchmark"]
        if f"{name}/tokens_mean" in summary
    ]
    return Cost(
        wall_s=wall_s, open_attempts=open_attempts, attempts=attempts, device_hours=wall_s * processes / sharing / 3600,
        device=device,
        phases_s={phase: sum(row.get(phase, 0.0) for row in steps) for phase in PHASES} if steps else {},
        evaluate_s=(run.marker("evaluate") or {}).get("seconds"),
        trained_tokens=sum(sampled) if steps or is_trained(cfg) else None,
        evaluated_tokens=sum(evaluated) if evaluated else None,
    )  # fmt: skip


def time_of_attempts(events: Sequence[dict[str, Any]]) -> tuple[float, int, int]:
    """Return (seconds between starts and their ends, number of starts without an end, number of starts)."""
    seconds, unended, starts = 0.0, 0, 0
    started: float | None = None
    for event in events:
        if event["event"] == "start":
            unended += started is not None
            started, starts = event["time"], starts + 1
        elif event["event"] in ENDS and started is not None:
            seconds, started = seconds + event["time"] - started, None
    return seconds, unended + (started is not None), starts


@dataclass(frozen=True)
class CostRow:
    """A row's cost as text, summed over its seeds; a dash where there is no number."""

    label: str
    hours: str
    trained_tokens: str
    evaluated_tokens: str
    phases: list[str]  # seconds: rollout, reward, log-probabilities, update, evaluation, the rest
    attempts: str


def cost_rows(rows: Sequence[Cell], labels: Sequence[str]) -> tuple[str, list[CostRow]]:
    """Return (`GPU-hours` or `core-hours`, a line per row and, for several rows, a line with their sum)."""
    by_row = [[cost(run, cell, summary) for run, summary in zip(cell.runs, cell.summaries, strict=True)] for cell in rows]
    all_costs = [run_cost for costs in by_row for run_cost in costs]
    unit = "GPU-hours" if any(run_cost.device for run_cost in all_costs) else "core-hours"
    lines = [as_text(label, costs) for label, costs in zip(labels, by_row, strict=True)]
    return unit, [*lines, *([as_text("All", all_costs)] if len(lines) > 1 else [])]


def as_text(label: str, costs: Sequence[Cost]) -> CostRow:
    """Return the summed costs of a row's runs as text."""
    phases_s = [total(run_cost.phases_s.get(phase) for run_cost in costs) for phase in PHASES]
    evaluate_s = total(run_cost.evaluate_s for run_cost in costs)
    wall_s = total(run_cost.wall_s for run_cost in costs)
    rest = None if wall_s is None else max(0.0, wall_s - sum(value or 0.0 for value in (*phases_s, evaluate_s)))
    attempts, lost = sum(run_cost.attempts for run_cost in costs), sum(run_cost.open_attempts for run_cost in costs)
    return CostRow(
        label,
        hours(total(run_cost.device_hours for run_cost in costs)),
        counted(total(run_cost.trained_tokens for run_cost in costs)),
        counted(total(run_cost.evaluated_tokens for run_cost in costs)),
        ["-" if value is None else f"{value:,.0f}" for value in (*phases_s, evaluate_s, rest)],
        f"{attempts}" + (f" ({lost} lost)" if lost else ""),
    )


def total(values: Iterable[float | None]) -> float | None:
    """Return the sum of the known values; None where there are none."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def hours(value: float | None) -> str:
    """Return hours as text, with two digits below 100; a dash for None."""
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def counted(value: float | None) -> str:
    """Return a count as text: `12,300`, `4.56 M`, `1.20 B`; a dash for None."""
    if value is None:
        return "-"
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.2f} {letter}"
    return f"{value:,.0f}"
