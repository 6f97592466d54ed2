"""The figures by name: which runs each is drawn from, what it shows, and its files. `rlvr figure`, and the report's."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from rlvr_sweeps.config.settings import averaged_benchmarks
from rlvr_sweeps.config.sweeps import paper_models
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import write_text
from rlvr_sweeps.reporting.differences.baselines import Family
from rlvr_sweeps.reporting.figures.drawing import Hot, as_svg, svg_and_hot, write_pictures
from rlvr_sweeps.reporting.figures.plots import Panel, Plot
from rlvr_sweeps.reporting.figures.spectra import by_kind, spectrum
from rlvr_sweeps.reporting.figures.tradeoffs import costs, forest, learning_rates, parameters, reaches
from rlvr_sweeps.reporting.figures.training_curves import batch_sizes, rewards
from rlvr_sweeps.reporting.labels import ReportRow, report_rows
from rlvr_sweeps.reporting.rows import Cell
from rlvr_sweeps.reporting.sweep_results import read_sweep_results

Make = Callable[[Sequence[ReportRow]], Plot | None]


@dataclass(frozen=True)
class Definition:
    """A figure: the product (conf/sweep/) whose rows it shows, and the function from rows to what is drawn."""

    product: str
    make: Make


def side_by_side(title: str, *makes: Make) -> Make:
    """Several plots as the panels of one; a plot without numbers is left out."""

    def make(rows: Sequence[ReportRow]) -> Plot | None:
        plots = [plot for each in makes if (plot := each(rows))]
        if not plots:
            return None
        panels: list[Panel] = [panel for plot in plots for panel in plot.panels]
        return Plot(title, panels, " ".join(f"{plot.title}: {plot.caption}" for plot in plots))

    return make


FIGURES = {
    "1": Definition("fig1", side_by_side("Figure 1: all methods", parameters, rewards)),
    "3": Definition("fig3", side_by_side("Figure 3: where ΔW lies in W0's spectrum", spectrum, rewards)),
    "4": Definition("fig4", rewards),
    "5": Definition("fig5", lambda rows: batch_sizes(rows, hardest(rows))),
    "lr": Definition("lr_fair", learning_rates),
    "reach": Definition("lr_fair", reaches),
    "forest": Definition("methods", forest),
    "cost": Definition("methods", costs),
    "spectra": Definition("fig3", by_kind),
}


class Drawn(NamedTuple):
    """A figure to be put into a page: `svg` starts with `<svg`, its ids are unique in the page; `caption` is plain text."""

    title: str
    svg: str
    caption: str


def figures_for_report(cells: Sequence[Cell], compared: Sequence[Family]) -> list[Drawn]:
    """Every figure that these rows of a report have the numbers for, in reading order; `compared`: their differences."""
    rows = report_rows(cells)
    makes: dict[str, Make] = {
        "rewards": rewards, "parameters": parameters, "forest": partial(forest, found=compared), "lr": learning_rates,
        "reach": reaches, "spectrum": spectrum, "cost": costs,
    }  # fmt: skip
    plots = {name: plot for name, make in makes.items() if (plot := make(rows))}
    return [Drawn(plot.title, as_svg(plot, name), plot.caption) for name, plot in plots.items()]


def reward_figure(cells: Sequence[Cell]) -> str | None:
    """Reward against step, a panel per objective, as `<svg …>`; None without a trained row."""
    plot = rewards(report_rows(cells))
    return as_svg(plot, "rewards") if plot else None


def hardest(rows: Sequence[ReportRow]) -> str:
    """The benchmark of Figure 5: AIME24, or else the last one of the rows' own, the embedded model's hardest tier."""
    names = averaged_benchmarks(rows[0].cell.cfg["benchmark"]) if rows else ["aime24"]
    return "aime24" if "aime24" in names else names[-1]


def make_figure(name: str, overrides: Sequence[str]) -> tuple[str, Plot]:
    """(the model's name, a figure of a product's runs), for the overrides that they were launched with.

    Refused where no run has what it shows.
    """
    if name not in FIGURES:
        raise Refused(f"There is no figure {name}. There are: {', '.join(FIGURES)}.")
    asked = read_sweep_results(FIGURES[name].product, overrides)
    rows = [
        ReportRow(one.cell, one.row.label, one.row.section, printed=one.row.printed if asked.model in paper_models() else {})
        for one in asked.rows
        if one.cell
    ]
    plot = FIGURES[name].make(rows)
    if plot is None:
        command = f"python launch.py sweep={asked.product.name} {' '.join(asked.typed)}"
        raise Refused(
            f"{len(rows)} of the {len(asked.rows)} rows of {asked.product.name} have finished, and none of them has what "
            f"figure {name} shows. Run what is missing: {command}"
        )
    finished = f"{len(rows)} of {len(asked.rows)} rows have finished." if len(rows) < len(asked.rows) else ""
    return asked.model, replace(plot, caption=" ".join(part for part in (plot.caption, finished, *asked.product.notes) if part))


def write_figure(plot: Plot, name: str, out: Path) -> list[Path]:
    """Write the figure as PDF, PNG, SVG and a page into `out`; returns their paths."""
    stem = f"figure{name}" if name.isdigit() else name
    out.mkdir(parents=True, exist_ok=True)
    page, svg = out / f"{stem}.html", out / f"{stem}.svg"
    text, hot = svg_and_hot(plot, stem)
    write_text(page, as_page(plot, text, hot))
    write_text(svg, text)
    return [*write_pictures(plot, out / stem), svg, page]


def as_page(plot: Plot, svg: str, hot: Hot) -> str:
    """The page. A line of the legend hides its series when clicked; a point under the mouse says its numbers."""
    data = json.dumps({"ids": hot.ids, "points": hot.points}, ensure_ascii=False).replace("</", "<\\/")
    environment = Environment(loader=PackageLoader("rlvr_sweeps.reporting.figures"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("figure.html.j2").render(title=plot.title, caption=plot.caption, svg=svg, data=data)
