"""What a figure shows, as plain data: series of numbers in panels, before anything is drawn.

Pure functions of rows make these (`training_curves.py`, `tradeoffs.py`, `spectrum_curves.py`); `drawing.py` draws them and
`interactive.py` lets a page answer the mouse. So what is tested is what is plotted.
"""

from dataclasses import dataclass, field
from typing import Literal

Look = Literal["line", "points", "joined", "stairs", "frontier", "printed", "row"]  # row: of a forest, its interval lies


@dataclass(frozen=True)
class Series:
    """Points in order, with an interval each where it is known: a band for a line, error bars for points."""

    label: str
    x: list[float]
    y: list[float]
    says: list[str]  # by point, what the mouse reads
    look: Look = "line"
    low: list[float] | None = None
    high: list[float] | None = None


@dataclass(frozen=True)
class Panel:
    x_label: str
    y_label: str
    series: list[Series]
    title: str = ""
    x_log: bool = False
    y_log: bool = False
    from_zero: bool = False  # the y axis begins at 0
    levels: dict[str, float] = field(default_factory=dict)  # horizontal lines, by what they say
    names: list[str] = field(default_factory=list)  # in place of numbers at y = 0, -1, …: the rows of a forest


@dataclass(frozen=True)
class Plot:
    """A figure: panels side by side, `columns` in a line, with one caption."""

    title: str
    panels: list[Panel]
    caption: str
    columns: int = 4
    share_y: bool = False
