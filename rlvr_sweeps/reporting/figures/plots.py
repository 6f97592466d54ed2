"""The content of a figure as plain data: series of numbers in panels.

Pure functions of rows return these objects (`training_curves.py`, `tradeoffs.py`, `spectra.py`); `drawing.py` draws them, and
the HTML page of `catalogue.py` adds tooltips. Tests therefore check the numbers that are plotted.
"""

from dataclasses import dataclass, field
from typing import Literal

Look = Literal["line", "points", "joined", "stairs", "frontier", "printed", "row"]  # row: of a forest plot


@dataclass(frozen=True)
class Series:
    """Points in order, each with an interval where one is known: drawn as a band for a line, as error bars for points."""

    label: str
    x: list[float]
    y: list[float]
    tooltips: list[str]  # by point, the text of its tooltip
    look: Look = "line"
    low: list[float] | None = None
    high: list[float] | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes: its series, labels and scales."""

    x_label: str
    y_label: str
    series: list[Series]
    title: str = ""
    x_log: bool = False
    y_log: bool = False
    from_zero: bool = False  # the y axis begins at 0
    levels: dict[str, float] = field(default_factory=dict)  # text beside a horizontal line -> its y value
    names: list[str] = field(default_factory=list)  # row names of a forest plot, at y = 0, -1, … in place of numbers


@dataclass(frozen=True)
class Plot:
    """A figure: panels in a grid of at most `columns` columns, with one caption."""

    title: str
    panels: list[Panel]
    caption: str
    columns: int = 4
    share_y: bool = False
