"""Draw plots as SVG, PDF and PNG with matplotlib, without a display. Equal numbers give identical bytes."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from rlvr_sweeps.config.sweeps import format_value
from rlvr_sweeps.reporting.figures.plots import Panel, Plot, Series

# Okabe and Ito's palette, which colour-blind readers can distinguish, and a brown. Further series repeat it with dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
MARKERS = "os^DvPX<>phd*8"
# The paper's methods have the same style in every figure; the four methods of Figure 3 have four different colours.
METHODS = (
    "Full", "LoRA", "DoRA", "PiSSA", "MiLoRA", "MiSS", "LoRA+", "AdaLoRA", "rsLoRA", "LoRA-FA", "VeRA", "IA3", "LN tuning",
    "Base",
)  # fmt: skip
GREY = "#777777"
SETTINGS = {
    "svg.fonttype": "none", "svg.hashsalt": "rlvr", "pdf.fonttype": 42, "font.family": "sans-serif", "font.size": 9,
    "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.fontsize": 8.5,
    "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
}  # fmt: skip
MARKS: dict[str, Any] = {"markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.6}
WIDTH, NARROW, HEIGHT = 3.3, 1.75, 2.9  # inches of a panel; NARROW where a line has more than four panels
LETTER, LINE = 0.075, 0.19  # inches: width of a legend's letter, height of its line
FEW = 6  # most labels of a legend below its panel; with more, all panels share one legend at the side


@dataclass(frozen=True)
class Style:
    """The colour, dashes and marker of a label in every panel."""

    colour: str
    dash: Any
    marker: str


@dataclass
class Interactive:
    """The interactive parts of a drawing: ids of the SVG elements by label; points as (label, x, y in SVG units, tooltip)."""

    ids: dict[str, list[str]]
    points: list[tuple[str, float, float, str]]


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """Return a style by label: the method's fixed style where all labels are the paper's methods, else by position."""
    fixed = all(label in METHODS for label in labels)
    positions = {label: METHODS.index(label) if fixed else index for index, label in enumerate(labels)}
    return {
        label: Style(COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)], MARKERS[index % len(MARKERS)])
        for label, index in positions.items()
    }


def as_svg(plot: Plot, name: str) -> str:
    """Return the plot as `<svg …>`; every id in it begins with `name`, so that a page can hold several plots."""
    return svg_and_interactive(plot, name)[0]


def svg_and_interactive(plot: Plot, name: str) -> tuple[str, Interactive]:
    """Return the plot as `<svg …>` and its interactive parts; every id begins with `name`."""
    with draw(plot) as (figure, interactive, axes_and_series):
        text = io.StringIO()
        figure.savefig(
            text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )  # also computes the layout, which the point positions below need
        height_pt = figure.get_size_inches()[1] * 72
        for axis, series in axes_and_series:
            positions = axis.transData.transform(list(zip(series.x, series.y, strict=True)))
            for (x, y), tooltip in zip(positions, series.tooltips, strict=True):
                interactive.points.append((series.label, round(float(x), 1), round(float(height_pt - y), 1), tooltip))
        svg = text.getvalue()[text.getvalue().index("<svg") :]
        for prefix in ('id="', 'href="#', "url(#"):
            svg = svg.replace(prefix, f"{prefix}{name}-")
        return svg, Interactive(
            {label: [f"{name}-{element_id}" for element_id in ids] for label, ids in interactive.ids.items()},
            interactive.points,
        )


def write_pictures(plot: Plot, stem: Path) -> list[Path]:
    """Write `stem`.pdf and `stem`.png (220 dots per inch); return their paths."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("pdf", "png")]
    with draw(plot) as (figure, _, _):
        figure.savefig(paths[0], metadata={"CreationDate": None})
        figure.savefig(paths[1], dpi=220)
    return paths


@contextmanager
def draw(plot: Plot) -> Iterator[tuple[Figure, Interactive, list[tuple[Axes, Series]]]]:
    """Yield (the matplotlib figure, its interactive parts, the axes of each series) under the matplotlib SETTINGS."""
    columns = min(plot.columns, len(plot.panels))
    grid_rows = -(-len(plot.panels) // columns)  # rounded up
    labels = list(dict.fromkeys(label for panel in plot.panels for label in legend_labels(panel)))
    most_labels = max(len(legend_labels(panel)) for panel in plot.panels)
    forest = any(panel.names for panel in plot.panels)  # forest plots name their rows at the y axis and need no legend
    shared = not forest and (len(labels) == most_labels or most_labels > FEW)
    with rc_context(SETTINGS):
        width = (WIDTH if columns <= 4 else NARROW) * columns + (LETTER * longest(labels) + 0.6 if shared else 0)
        width += sum(LETTER * longest(panel.names) for panel in plot.panels)
        height = HEIGHT if columns <= 4 else 0.65 * HEIGHT
        height += 0 if shared or forest else LINE * most_labels
        height = max(height, LINE * len(labels) / grid_rows + 0.3 if shared else 0)
        height = max(height, *(0.9 + 0.24 * len(panel.names) for panel in plot.panels))
        figure = Figure(figsize=(width, height * grid_rows), dpi=72, layout="constrained")  # an SVG has 72 units per inch
        axes = figure.subplots(grid_rows, columns, squeeze=False, sharey=plot.share_y).ravel()
        interactive = Interactive({}, [])
        axes_and_series: list[tuple[Axes, Series]] = []
        for index, (axis, panel) in enumerate(zip(axes, plot.panels, strict=False)):
            style = styles(labels if shared else legend_labels(panel))
            draw_panel(axis, panel, style, f"panel{index}", interactive, not plot.share_y or index % columns == 0)
            axes_and_series += [(axis, series) for series in panel.series]
            if not shared and not forest:
                name_legend(
                    axis.legend(loc="upper left", bbox_to_anchor=(0, -0.22), borderaxespad=0), f"panel{index}", interactive
                )
        for axis, panel in zip(axes, plot.panels, strict=False):  # after drawing all panels, since they may share their y axis
            if panel.from_zero:
                axis.set_ylim(bottom=0)
        for axis in axes[len(plot.panels) :]:
            axis.set_visible(False)
        if shared:
            entries = [legend_entry(label, styles(labels)[label], plot.panels) for label in labels]
            name_legend(figure.legend(handles=entries, loc="outside right upper"), "all", interactive)
        yield figure, interactive, axes_and_series


def longest(texts: Sequence[str]) -> int:
    """Return the number of characters of the longest text; 0 without texts."""
    return max(map(len, texts), default=0)


def legend_labels(panel: Panel) -> list[str]:
    """Return the labels of a panel's legend: all but the Pareto frontier and the values printed in the paper."""
    return list(dict.fromkeys(series.label for series in panel.series if series.look not in ("frontier", "printed")))


def draw_panel(
    axis: Axes, panel: Panel, style: dict[str, Style], name: str, interactive: Interactive, with_y_label: bool
) -> None:
    """Draw a panel's series, levels, labels and scales on `axis`; add its element ids to `interactive`."""
    for index, series in enumerate(panel.series):
        for number, artist in enumerate(draw_series(axis, series, style.get(series.label, Style(GREY, ":", "x")))):
            artist.set_gid(f"{name}-{index}-{number}")
            interactive.ids.setdefault(series.label, []).append(f"{name}-{index}-{number}")
    for text, level in panel.levels.items():
        axis.axhline(level, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        axis.annotate(
            text, (1, level), xycoords=("axes fraction", "data"), xytext=(2, 0), textcoords="offset points", va="center",
            fontsize=8, color="#555555",
        )  # fmt: skip
    axis.set_xlabel(panel.x_label)
    if with_y_label:
        axis.set_ylabel(panel.y_label)
    axis.set_title(panel.title)
    if panel.names:
        axis.axvline(0, color=GREY, linewidth=0.9)
        axis.set_yticks([-index for index in range(len(panel.names))], panel.names)
        axis.set_ylim(-len(panel.names) + 0.4, 0.6)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", color="#e4e4e4", linewidth=0.6)
        return
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    if panel.x_log:
        axis.set_xscale("log")
        log_ticks(axis.xaxis, [x for series in panel.series for x in series.x])
    if panel.y_log:
        axis.set_yscale("log")
        log_ticks(axis.yaxis, [y for series in panel.series for y in series.y if y > 0])


def draw_series(axis: Axes, series: Series, style: Style) -> list[Any]:
    """Draw the series on `axis`; return its artists."""
    x, y, colour = series.x, series.y, style.colour
    if series.look == "frontier":
        return [*axis.plot(x, y, color=GREY, linewidth=1.1, linestyle=":", zorder=1)]
    if series.look == "printed":
        return [*axis.plot(x, y, "x", color="#999999", markersize=6, markeredgewidth=1.3, zorder=2)]
    line: dict[str, Any] = {"color": colour, "linestyle": style.dash, "linewidth": 1.6, "label": series.label}
    marks: dict[str, Any] = {"marker": style.marker, **MARKS}
    if series.look in ("points", "row"):
        artists = [*axis.plot(x, y, **line | {"linestyle": "none"}, **marks)]
    elif series.look == "joined":
        artists = [*axis.plot(x, y, **line, **marks)]
    elif series.look == "stairs":
        artists = [*axis.step(x, y, where="mid", **line)]
    else:
        artists = [*axis.plot(x, y, **line)]
    if series.low is None or series.high is None:
        return artists
    if series.look == "line":
        return [*artists, axis.fill_between(x, series.low, series.high, color=colour, alpha=0.15, linewidth=0)]
    bars: dict[str, Any] = {"colors": colour, "linewidth": 1.2, "zorder": 1.5}
    draw_bars, positions = (axis.hlines, y) if series.look == "row" else (axis.vlines, x)
    return [*artists, draw_bars(positions, series.low, series.high, **bars)]


def log_ticks(axis: Any, values: Sequence[float]) -> None:
    """Label a log axis with plain numbers: at the values if at most four, else at positions that depend on the range."""
    smallest, ratio = min(values), max(values) / min(values)
    if len(set(values)) <= 4 and all(high / low > 1.4 for low, high in pairwise(sorted(set(values)))):
        axis.set_major_locator(FixedLocator(sorted(set(values))))
    elif ratio < 100:
        axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if ratio < 6 else (1.0, 2.0, 5.0)))
    else:
        axis.set_major_locator(LogLocator())
        axis.axes.set_xlim(left=10 ** math.floor(math.log10(smallest))) if axis.axis_name == "x" else None
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_value(f"{value:g}")))


def legend_entry(label: str, style: Style, panels: Sequence[Panel]) -> Line2D:
    """Return a label's legend entry: a line, a marker or both, as the panels draw it."""
    looks = {series.look for panel in panels for series in panel.series if series.label == label}
    line, marks = looks & {"line", "stairs", "joined"}, looks & {"points", "joined"}
    return Line2D(
        [], [], color=style.colour, linestyle=style.dash if line else "none", linewidth=1.6, label=label,
        marker=style.marker if marks else "none", **MARKS,
    )  # fmt: skip


def name_legend(legend: Any, name: str, interactive: Interactive) -> None:
    """Give every mark and text of a legend an id, and add the ids to `interactive`."""
    for index, (handle, text) in enumerate(zip(legend.legend_handles, legend.get_texts(), strict=True)):
        for part, artist in (("mark", handle), ("text", text)):
            artist.set_gid(f"legend-{name}-{index}-{part}")
            interactive.ids.setdefault(text.get_text(), []).append(f"legend-{name}-{index}-{part}")
