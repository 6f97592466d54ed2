"""TODO: rlvr_sweeps.reporting.tables.cells."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.reporting.differences.baselines import Contrast
from rlvr_sweeps.reporting.rows import Cell
from rlvr_sweeps.reporting.sweep_results import Filled
from rlvr_sweeps.reporting.tables.formats import Entry, Line


def difference_entry(contrast: Contrast | None, is_baseline: bool) -> tuple[Entry, dict[str, Any]]:
    """`+1.2 [-0.5, +2.9]` in points, and the numbers behind it."""
    if contrast is None:
        return Entry("baseline" if is_baseline else None), {}
    one = contrast.difference
    value, low, high = 100 * one.value, 100 * one.low, 100 * one.high
    facts = {"points": value, "low": low, "high": high, "p": one.p, "p_holm": contrast.p_holm, "star": contrast.star}
    return Entry(f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"), facts


def row_head(row: Filled) -> dict[str, Entry]:
    """What a row is called, and how many of its seeds are there."""
    done = len(row.cell.runs) if row.cell else 0
    seeds = f"{done}" if done == len(row.asked) else f"{done}/{len(row.asked)}"
    return {
        "row": Entry(row.row.label), "stands_for": Entry(row.row.stands_for),
        "seeds": Entry(seeds if is_trained(row.cfg) or not done else None),
    }  # fmt: skip


def row_facts(row: Filled) -> dict[str, Any]:
    cell = row.cell
    facts: dict[str, Any] = {"overrides": " ".join(row.row.overrides), "stands_for": row.row.stands_for}
    facts |= {"runs": " ".join(run.name for run in row.asked), "runs_done": len(cell.runs) if cell else 0}
    facts |= {"runs_asked": len(row.asked)}
    return facts | interval(cell) if cell else facts


def interval(cell: Cell) -> dict[str, Any]:
    """95 % interval of a row's overall accuracy on these problems: Student's t over seeds; of one seed, samples alone."""
    from scipy import stats  # half a second

    value, error, seeds = cell.value("avg"), cell.error("avg"), len(cell.runs)
    if value is None or error is None:
        return {}
    reach = float(stats.norm.ppf(0.975) if seeds == 1 else stats.t.ppf(0.975, seeds - 1)) * error
    known = "samples" if seeds == 1 else "seeds and samples"
    return {"overall/low": 100 * (value - reach), "overall/high": 100 * (value + reach), "interval_from": known}


def mean_of(cell: Cell | None, column: str, with_error: bool = False) -> Entry:
    """A summary's column over a row's seeds, in percent."""
    value = cell.value(column) if cell else None
    error = cell.error(column) if cell and with_error else None
    return Entry(None if value is None else 100 * value, None if error is None else 100 * error)


def with_best(lines: Sequence[Line], keys: Sequence[str]) -> list[Line]:
    """The same lines with the highest of each column in bold, where there are several to choose from."""
    values = {key: [v for line in lines if isinstance(v := line.entries[key].value, float)] for key in keys}
    best = {key: max(found) for key, found in values.items() if len(found) > 1}
    return [
        replace(line, entries={
            key: replace(entry, best=key in best and entry.value == best[key])
            for key, entry in line.entries.items()
        })
        for line in lines
    ]  # fmt: skip
