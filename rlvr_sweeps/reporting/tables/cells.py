"""Make the entries that several tables share: a row's name and seeds, means, intervals, differences, the best in bold."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.reporting.differences.baselines import Contrast
from rlvr_sweeps.reporting.rows import Cell
from rlvr_sweeps.reporting.sweep_results import RowResult
from rlvr_sweeps.reporting.tables.formats import Entry, Line


def difference_entry(contrast: Contrast | None, is_baseline: bool) -> tuple[Entry, dict[str, Any]]:
    """Return a difference in percentage points as `+1.2 [-0.5, +2.9]`, and its numbers for CSV and JSON."""
    if contrast is None:
        return Entry("baseline" if is_baseline else None), {}
    result = contrast.difference
    value, low, high = 100 * result.value, 100 * result.low, 100 * result.high
    facts = {"points": value, "low": low, "high": high, "p": result.p, "p_holm": contrast.p_holm, "star": contrast.star}
    return Entry(f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"), facts


def row_head(row: RowResult) -> dict[str, Entry]:
    """Return the entries of a row's label and of the number of its finished seeds."""
    done = len(row.cell.runs) if row.cell else 0
    seeds = f"{done}" if done == len(row.runs) else f"{done}/{len(row.runs)}"
    return {
        "row": Entry(row.row.label), "stands_for": Entry(row.row.stands_for),
        "seeds": Entry(seeds if is_trained(row.cfg) or not done else None),
    }  # fmt: skip


def row_facts(row: RowResult) -> dict[str, Any]:
    """Return the facts of a row that only CSV and JSON hold: its overrides, runs, and the interval of its overall accuracy."""
    cell = row.cell
    facts: dict[str, Any] = {"overrides": " ".join(row.row.overrides), "stands_for": row.row.stands_for}
    facts |= {"runs": " ".join(run.name for run in row.runs), "runs_done": len(cell.runs) if cell else 0}
    facts |= {"runs_asked": len(row.runs)}
    return facts | interval(cell) if cell else facts


def interval(cell: Cell) -> dict[str, Any]:
    """Return the 95 % interval of a row's overall accuracy on these problems, within 0 and 100: Student's t over seeds; for
    one seed, normal.
    """
    from scipy import stats  # its import takes half a second

    value, error, seeds = cell.value("avg"), cell.error("avg"), len(cell.runs)
    if value is None or error is None:
        return {}
    half_width = float(stats.norm.ppf(0.975) if seeds == 1 else stats.t.ppf(0.975, seeds - 1)) * error
    source = "samples" if seeds == 1 else "seeds and samples"
    low, high = max(0.0, value - half_width), min(1.0, value + half_width)
    return {"overall/low": 100 * low, "overall/high": 100 * high, "interval_from": source}


def mean_of(cell: Cell | None, column: str, with_error: bool = False) -> Entry:
    """Return the mean of a summary column over a row's seeds, in percent."""
    value = cell.value(column) if cell else None
    error = cell.error(column) if cell and with_error else None
    return Entry(None if value is None else 100 * value, None if error is None else 100 * error)


def with_best(lines: Sequence[Line], keys: Sequence[str]) -> list[Line]:
    """Return the lines with the highest value of each column in bold, where at least two rows have a value."""
    values = {key: [value for line in lines if isinstance(value := line.entries[key].value, float)] for key in keys}
    best = {key: max(column_values) for key, column_values in values.items() if len(column_values) > 1}
    return [
        replace(line, entries={
            key: replace(entry, best=key in best and entry.value == best[key])
            for key, entry in line.entries.items()
        })
        for line in lines
    ]  # fmt: skip
