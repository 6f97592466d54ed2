"""TODO: rlvr_sweeps.reporting.labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.reporting.rows import Cell

DIALS = {"rank": "r", "lr": "lr", "batch_size": "batch", "dropout": "dropout", "steps": "steps"}


@dataclass(frozen=True)
class Row:
    """A row to be shown: its runs, what it is called among all rows and in its own panel, the paper's values in percent."""

    cell: Cell
    label: str
    section: str = ""
    in_section: str = ""
    printed: dict[str, float] = field(default_factory=dict)


def rows_of(cells: Sequence[Cell]) -> list[Row]:
    """The cells of a report as rows, no two of one name; the section is the objective."""
    said = [named(cell, cells) for cell in cells]
    apart = [text if said.count(text) == 1 else f"{text} ({cell.runs[0].id})" for text, cell in zip(said, cells, strict=True)]
    return [
        Row(cell, text, cell.cfg["algo"]["title"], label(cell, cells) if said.count(name) == 1 else text)
        for cell, name, text in zip(cells, said, apart, strict=True)
    ]


def trained(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if is_trained(row.cell.cfg)]


def named(cell: Cell, among: Sequence[Cell], dials: Sequence[str] = tuple(DIALS)) -> str:
    """The label of a cell, with its objective where trained cells have several."""
    several = len({other.cfg["algo"]["name"] for other in among if is_trained(other.cfg)}) > 1 and is_trained(cell.cfg)
    return label(cell, among, dials) + (f" {cell.cfg['algo']['title']}" if several else "")


def label(cell: Cell, among: Sequence[Cell], dials: Sequence[str] = tuple(DIALS)) -> str:
    """The method's title, and whatever of the dials tells rows of this method and objective apart."""
    cfg = cell.cfg
    rivals = [
        other.cfg for other in among
        if (other.cfg["peft"]["name"], other.cfg["algo"]["name"]) == (cfg["peft"]["name"], cfg["algo"]["name"])
    ]  # fmt: skip
    parts = [cfg["peft"]["title"]]
    for dial in dials:
        if len({other[dial] for other in rivals}) > 1:
            parts.append(f"{DIALS[dial]} {cfg[dial]:g}")
    if len({other["model"]["name"] for other in (c.cfg for c in among)}) > 1:
        parts.append(cfg["model"]["name"])
    return " ".join(parts)


def counted(shown: Sequence[Row], rows: Sequence[Row]) -> str:
    """` 5 of 14 rows have the numbers.` where some lack them; nothing where none does."""
    return f" {len(shown)} of {len(rows)} rows have these numbers." if len(shown) < len(rows) else ""


def plus_minus(value: float, error: float | None, unit: str = "%") -> str:
    """`61.3 ± 1.2 %`."""
    return f"{value:.1f}" + (f" ± {error:.1f}" if error is not None else "") + f" {unit}"


def short(value: float) -> str:
    """Three significant digits: `0.00123`, `1.5e-05`, `12,300`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(value: float | None, error: float | None = None) -> str:
    """`61.3 ± 1.2`, in percent; a dash where there is no number."""
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")
