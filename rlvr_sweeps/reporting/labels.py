"""Labels of report rows, unique within a report, and the number formats that tables, figures and pages share.

The labels are made from the configurations of finished runs and begin with the method. `config.sweeps.label` makes different
labels, from the overrides of a sweep's rows: those of the paper's tables, with the method only where it differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained, modules_of
from rlvr_sweeps.config.sweeps import DIAL_LABELS
from rlvr_sweeps.reporting.rows import Cell

DIALS = {
    dial: DIAL_LABELS[dial] for dial in ("modules", "rank", "lr", "batch_size", "dropout", "steps")
}  # in the order of a label


@dataclass(frozen=True)
class ReportRow:
    """A row of a report: its runs, its label among all rows and in its section, and the paper's printed values in percent."""

    cell: Cell
    label: str
    section: str = ""
    section_label: str = ""
    printed: dict[str, float] = field(default_factory=dict)


def report_rows(cells: Sequence[Cell]) -> list[ReportRow]:
    """Return the cells of a report as rows with unique labels; the section is the objective."""
    labels = [label_with_objective(cell, cells) for cell in cells]
    unique_labels = [
        text if labels.count(text) == 1 else f"{text} ({cell.runs[0].id})" for text, cell in zip(labels, cells, strict=True)
    ]
    return [
        ReportRow(cell, text, cell.cfg["algo"]["title"], label(cell, cells) if labels.count(name) == 1 else text)
        for cell, name, text in zip(cells, labels, unique_labels, strict=True)
    ]


def trained_rows(rows: Sequence[ReportRow]) -> list[ReportRow]:
    """Return the rows whose method trains."""
    return [row for row in rows if is_trained(row.cell.cfg)]


def label_with_objective(cell: Cell, cells: Sequence[Cell], dials: Sequence[str] = tuple(DIALS)) -> str:
    """Return the label of a cell, followed by its objective where the trained cells have several objectives."""
    objectives = {trained.cfg["algo"]["name"] for trained in cells if is_trained(trained.cfg)}
    show_objective = len(objectives) > 1 and is_trained(cell.cfg)
    return label(cell, cells, dials) + (f" {cell.cfg['algo']['title']}" if show_objective else "")


def label(cell: Cell, cells: Sequence[Cell], dials: Sequence[str] = tuple(DIALS)) -> str:
    """Return the method's title, the dials that differ between rows of this method and objective, and the model if several."""
    cfg, configurations = cell.cfg, [row.cfg for row in cells]
    names = cfg["peft"]["name"], cfg["algo"]["name"]
    same_method = [each for each in configurations if (each["peft"]["name"], each["algo"]["name"]) == names]
    parts = [cfg["peft"]["title"]]
    for dial in dials:
        if len({dial_of(each, dial) for each in same_method}) > 1:
            value = dial_of(cfg, dial)
            parts.append(f"{DIALS[dial]} {value if isinstance(value, str) else format(value, 'g')}")
    if len({each["model"]["name"] for each in configurations}) > 1:
        parts.append(cfg["model"]["name"])
    return " ".join(parts)


def dial_of(cfg: Resolved, dial: str) -> Any:
    """Return a dial's configured value, and for `modules` what the adapter targets: all, attention, mlp or its own choice."""
    return modules_of(cfg) or "own" if dial == "modules" else cfg[dial]


def coverage_note(shown: Sequence[ReportRow], rows: Sequence[ReportRow]) -> str:
    """Return ` 5 of 14 rows have these numbers.`, or an empty string where all rows have them."""
    return f" {len(shown)} of {len(rows)} rows have these numbers." if len(shown) < len(rows) else ""


def plus_minus(value: float, error: float | None, unit: str = "%") -> str:
    """Return a value with its standard error and unit: `61.3 ± 1.2 %`."""
    return f"{value:.1f}" + (f" ± {error:.1f}" if error is not None else "") + f" {unit}"


def three_digits(value: float) -> str:
    """Return a value with three significant digits, or from 1000 on as an integer: `0.00123`, `1.5e-05`, `12,300`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(value: float | None, error: float | None = None) -> str:
    """Return a share with its standard error in percent, `61.3 ± 1.2`; a dash for None."""
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")
