"""The figures by name, for `rlvr figure` and `rlvr report`: their runs, contents and files."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from rlvr_sweeps.config.settings import averaged_benchmarks
from rlvr_sweeps.config.sweeps import paper_models
from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.files import write_text
from rlvr_sweeps.reporting.differences.baselines import Family
from rlvr_sweeps.reporting.figures.drawing import Interactive, as_svg, svg_and_interactive, write_pictures
from rlvr_sweeps.reporting.figures.plots import Panel, Plot
from rlvr_sweeps.reporting.figures.spectra import by_kind, spectrum
from rlvr_sweeps.reporting.figures.tradeoffs import costs, forest, learning_rates, parameters, reaches
from rlvr_sweeps.reporting.figures.training_curves import batch_sizes, rewards
from rlvr_sweeps.reporting.labels import ReportRow, report_rows
from rlvr_sweeps.reporting.rows import Cell
from rlvr_sweeps.reporting.sweep_results import RowResult, SweepResults, read_sweep_results, unreadable_sentence

Make = Callable[[Sequence[ReportRow]], Plot | None]


@dataclass(frozen=True)
class Definition:
    """A figure: the product (conf/sweep/) whose rows it shows, and the function from rows to what is drawn."""

    product: str
    make: Make


def side_by_side(title: str, *makes: Make) -> Make:
    """Return a function that joins the panels of several plots; a plot without numbers is left out."""

    def make_joined(rows: Sequence[ReportRow]) -> Plot | None:
        plots = [plot for make in makes if (plot := make(rows))]
        if not plots:
            return None
        panels: list[Panel] = [panel for plot in plots for panel in plot.panels]
        return Plot(title, panels, " ".join(f"{plot.title}: {plot.caption}" for plot in plots))

    return make_joined


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


class PageFigure(NamedTuple):
    """A figure as part of a page: `svg` starts with `<svg`, its ids are unique in the page; `caption` is plain text."""

    title: str
    svg: str
    caption: str


def figures_for_report(cells: Sequence[Cell], compared: Sequence[Family]) -> list[PageFigure]:
    """Return, in reading order, every figure that a report's rows have numbers for; `compared` holds their differences."""
    rows = report_rows(cells)
    makes: dict[str, Make] = {
        "rewards": rewards, "parameters": parameters, "forest": partial(forest, compared=compared), "lr": learning_rates,
        "reach": reaches, "spectrum": spectrum, "cost": costs,
    }  # fmt: skip
    plots = {name: plot for name, make in makes.items() if (plot := make(rows))}
    return [PageFigure(plot.title, as_svg(plot, name), plot.caption) for name, plot in plots.items()]


def hardest(rows: Sequence[ReportRow]) -> str:
    """Return the benchmark of Figure 5: AIME24, else the rows' last benchmark (the hardest tier of the embedded model)."""
    names = averaged_benchmarks(rows[0].cell.cfg["benchmark"]) if rows else ["aime24"]
    return "aime24" if "aime24" in names else names[-1]


def make_figure(name: str, overrides: Sequence[str]) -> tuple[str, Plot]:
    """Return (the model's name, the figure), drawn from the product's runs that were launched with these overrides.

    A run with a damaged file is left out and named in the caption. Raises Refused for an unknown name, and where no run has the
    numbers that the figure shows.
    """
    if name not in FIGURES:
        raise Refused(f"There is no figure {name}. The figures are: {', '.join(FIGURES)}.")
    results = read_sweep_results(FIGURES[name].product, overrides)
    plot, shown = plot_of(FIGURES[name].make, results)
    unreadable = list(dict.fromkeys(sentence for row in shown for sentence in row.unreadable))
    count = sum(row.cell is not None for row in shown)
    if plot is None:
        command = f"python launch.py sweep={results.product.name} {' '.join(results.overrides)}"
        raise Refused(
            f"{count} of the {len(results.rows)} rows of {results.product.name} have finished, and none has the "
            f"numbers that figure {name} shows. Run the missing rows: {command}" + "".join(f"\n{text}" for text in unreadable)
        )
    finished = f"{count} of {len(results.rows)} rows have finished." if count < len(results.rows) else ""
    return results.model, replace(
        plot, caption=" ".join(part for part in (plot.caption, finished, *unreadable, *results.product.notes) if part)
    )


def plot_of(make: Make, results: SweepResults) -> tuple[Plot | None, list[RowResult]]:
    """Return what is drawn, and the rows it shows: without the runs of which a file proves damaged while it is drawn."""
    shown = list(results.rows)
    while True:
        rows = [
            ReportRow(
                result.cell,
                result.row.label,
                result.row.section,
                printed=result.row.printed if results.model in paper_models() else {},
            )
            for result in shown
            if result.cell
        ]
        try:
            return make(rows), shown
        except Damaged as damage:
            shown = [without_damaged(result, damage) for result in shown]
            if not any(result.unreadable and str(damage) in result.unreadable[-1] for result in shown):
                raise


def without_damaged(result: RowResult, damage: Damaged) -> RowResult:
    """Return a row without the run that the damaged file belongs to."""
    for run in result.cell.runs if result.cell else ():
        if run.path == damage.run_path:
            return result.without(run, unreadable_sentence(run, damage))
    return result


def write_figure(plot: Plot, name: str, out: Path) -> list[Path]:
    """Write the figure as PDF, PNG, SVG and HTML into the folder `out`; return their paths."""
    stem = f"figure{name}" if name.isdigit() else name
    out.mkdir(parents=True, exist_ok=True)
    page_path, svg_path = out / f"{stem}.html", out / f"{stem}.svg"
    svg, interactive = svg_and_interactive(plot, stem)
    write_text(page_path, as_page(plot, svg, interactive))
    write_text(svg_path, svg)
    return [*write_pictures(plot, out / stem), svg_path, page_path]


def as_page(plot: Plot, svg: str, interactive: Interactive) -> str:
    """Return the figure's HTML page: a click on a legend entry hides its series, and a point shows its numbers on hover."""
    data = json.dumps({"ids": interactive.ids, "points": interactive.points}, ensure_ascii=False).replace("</", "<\\/")
    environment = Environment(loader=PackageLoader("rlvr_sweeps.reporting.figures"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("figure.html.j2").render(title=plot.title, caption=plot.caption, svg=svg, data=data)
