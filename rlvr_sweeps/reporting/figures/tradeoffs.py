"""Plot accuracy against trained parameters (Figure 1 left), learning rate, reach and cost; and paired differences."""

from collections.abc import Callable, Sequence

from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.config.sweeps import format_value
from rlvr_sweeps.evaluation.samples import mean
from rlvr_sweeps.reporting.differences.baselines import SEEDS_FOR_A_STAR, Family, families
from rlvr_sweeps.reporting.figures.plots import Panel, Plot, Series
from rlvr_sweeps.reporting.labels import (
    DIALS,
    ReportRow,
    coverage_note,
    label_with_objective,
    plus_minus,
    three_digits,
    trained_rows,
)
from rlvr_sweeps.reporting.page.costs import Cost, cost
from rlvr_sweeps.reporting.rows import Cell

ACCURACY = "accuracy, Avg@k, %"
BARS = "Bars: ± the standard error, over seeds where there are several, over sampled completions where there is one."
Measure = Callable[[ReportRow], float | None]


def point(row: ReportRow, x: float, x_text: str) -> Series | None:
    """Return a row's accuracy in percent at x, with its standard error; None where it was not evaluated."""
    value, error = row.cell.value("avg"), row.cell.error("avg")
    if value is None:
        return None
    y, bar = 100 * value, None if error is None else 100 * error
    tooltips = [f"{x_text}: {plus_minus(y, bar)}"]
    return Series(row.label, [x], [y], tooltips, "points", *(([y - bar], [y + bar]) if bar is not None else (None, None)))


def joined(label: str, points: Sequence[Series]) -> Series:
    """Return the points of one method as one line, in their order; error bars only where all have them."""
    known = all(one.low and one.high for one in points)
    low, high = (
        ([one.low[0] for one in points if one.low], [one.high[0] for one in points if one.high]) if known else (None, None)
    )
    x, y, tooltips = ([value for one in points for value in getattr(one, part)] for part in ("x", "y", "tooltips"))
    return Series(label, x, y, tooltips, "joined" if len(points) > 1 else "points", low, high)


def base_level(rows: Sequence[ReportRow]) -> dict[str, float]:
    """Return the accuracy in percent of the untrained rows, by label."""
    values = [row.cell.value("avg") for row in rows if not is_trained(row.cell.cfg)]
    return {f"{row.label}": 100 * value for row, value in zip(untrained(rows), values, strict=True) if value is not None}


def untrained(rows: Sequence[ReportRow]) -> list[ReportRow]:
    """Return the rows of untrained models."""
    return [row for row in rows if not is_trained(row.cell.cfg)]


def trained_percent(row: ReportRow) -> float | None:
    """Return the trained parameters in percent of the model's parameters; None where a number is missing."""
    trainable, total = row.cell.value("trainable"), row.cell.value("parameters")
    return 100 * trainable / total if trainable and total else None


def frontier(points: Sequence[Series]) -> Series | None:
    """Return the Pareto frontier (most accurate points for their trained parameters or fewer); None for fewer than two."""
    best: list[Series] = []
    for one in sorted(points, key=lambda one: (one.x[0], -one.y[0])):
        if not best or one.y[0] > best[-1].y[0]:
            best.append(one)
    if len(best) < 2:
        return None
    return Series("Pareto frontier", [b.x[0] for b in best], [b.y[0] for b in best], [b.label for b in best], "frontier")


def parameters(rows: Sequence[ReportRow]) -> Plot | None:
    """Return Figure 1 left: accuracy against the share of trained parameters."""
    by_label = {row.label: row for row in trained_rows(rows)}
    shares = {name: share for name, row in by_label.items() if (share := trained_percent(row)) is not None}
    points = [
        made for name, share in shares.items() if (made := point(by_label[name], share, f"{three_digits(share)} % trained"))
    ]
    if not points:
        return None
    printed = [
        Series(
            "printed in the paper", [shares[one.label]], [value], [f"{one.label}, printed in the paper: {value:g} %"], "printed"
        )
        for one in points
        if (value := by_label[one.label].printed.get("overall")) is not None
    ]
    edge = frontier(points)
    panel = Panel(
        "trained parameters, % of the model", ACCURACY, [*([edge] if edge else []), *points, *printed],
        "after training", x_log=True, levels=base_level(rows),
    )  # fmt: skip
    shown = [by_label[one.label] for one in points]
    caption = BARS
    caption += " Dotted line: the Pareto frontier, which no method with fewer trained parameters exceeds." if edge else ""
    caption += " Crosses: accuracy printed in the paper, at the share of trained parameters measured here." if printed else ""
    return Plot("Accuracy against trained parameters", [panel], caption + coverage_note(shown, trained_rows(rows)))


def lines(
    rows: Sequence[ReportRow], measure: Measure, x_text: Callable[[float, ReportRow], str]
) -> tuple[list[Series], list[ReportRow]]:
    """Return a line per method (and per value of the other dials) in order of learning rate, and the rows on the lines."""
    methods: dict[str, list[ReportRow]] = {}
    cells, dials = [row.cell for row in rows], [dial for dial in DIALS if dial != "lr"]
    for row in sorted(trained_rows(rows), key=lambda row: float(row.cell.cfg["lr"])):
        if measure(row) is not None and row.cell.value("avg") is not None:
            methods.setdefault(label_with_objective(row.cell, cells, dials), []).append(row)
    series, shown = [], []
    for method, own in methods.items():
        points = [made for row in own if (made := point(row, measure(row) or 0.0, x_text(measure(row) or 0.0, row)))]
        series.append(joined(method, points))
        shown += own
    return series, shown


def learning_rates(rows: Sequence[ReportRow]) -> Plot | None:
    """Return accuracy against learning rate, a line per method; None where no method has two rates."""
    series, shown = lines(rows, lambda row: float(row.cell.cfg["lr"]), lambda x, _: f"lr {format_value(str(x))}")
    if all(len(one.x) < 2 for one in series):
        return None
    panel = Panel("learning rate", ACCURACY, series, x_log=True, levels=base_level(rows))
    caption = (
        f"{BARS} At one learning rate, methods change the weights by different amounts: compare the best point of each line."
        f"{coverage_note(shown, trained_rows(rows))}"
    )
    return Plot("Accuracy against learning rate", [panel], caption)


def reaches(rows: Sequence[ReportRow]) -> Plot | None:
    """Return accuracy against reach, the relative change of the weights; None without a measured reach."""
    series, shown = lines(
        rows, percent_moved, lambda x, row: f"lr {format_value(str(row.cell.cfg['lr']))}, reach {three_digits(x)} %"
    )
    if not series:
        return None
    panel = Panel("reach ‖ΔW‖/‖W0‖, %", ACCURACY, series, x_log=True, levels=base_level(rows))
    caption = (
        f"{BARS} Reach is the relative change of the weights by training. A line joins one method's learning rates."
        f"{coverage_note(shown, trained_rows(rows))}"
    )
    return Plot("Accuracy against reach", [panel], caption)


def percent_moved(row: ReportRow) -> float | None:
    """Return the row's reach in percent; None where it was not measured."""
    moved = row.cell.value("reach")
    return 100 * moved if moved else None


def costs(rows: Sequence[ReportRow]) -> Plot | None:
    """Return accuracy against device time and generated tokens of a run, mean over seeds; core-minutes without a GPU."""
    shown = [row for row in trained_rows(rows) if row.cell.value("avg") is not None]
    spent = {row.label: costs_of(row.cell) for row in shown}
    on_gpus = any(one.device for costs in spent.values() for one in costs)
    unit, each = ("GPU-hours", 1) if on_gpus else ("core-minutes", 60)
    hours = {label: [each * one.device_hours for one in costs] for label, costs in spent.items()}
    tokens = {
        label: [one.trained_tokens / 1e6 for one in costs if one.trained_tokens is not None] for label, costs in spent.items()
    }
    panels = []
    for x_label, x_unit, values in (
        (f"training and evaluation, {unit}", unit, hours),
        ("tokens generated in training, millions", "million tokens", tokens),
    ):
        known = [(row, mean(of_row)) for row in shown if (of_row := values[row.label]) and mean(of_row) > 0]
        series = [made for row, x in known if (made := point(row, x, f"{three_digits(x)} {x_unit}"))]
        if series:
            panels.append(Panel(x_label, ACCURACY, series, x_log=True, levels=base_level(rows)))
    if not panels:
        return None
    caption = f"{BARS} Costs are per run (mean over seeds); time covers all of its attempts, from start to end."
    return Plot("Accuracy against cost", panels, caption + coverage_note(shown, trained_rows(rows)), share_y=True)


def costs_of(cell: Cell) -> list[Cost]:
    """Return the cost of each run of a row."""
    return [cost(run, cell, summary) for run, summary in zip(cell.runs, cell.summaries, strict=True)]


def forest(rows: Sequence[ReportRow], compared: Sequence[Family] | None = None) -> Plot | None:
    """Return paired differences to the baseline with 95 % intervals, the largest first; None where nothing can be compared.

    One panel per family of comparable rows. `compared` holds the differences if they are already computed.
    """
    compared = families([row.cell for row in rows])[0] if compared is None else compared
    if not compared:
        return None
    shown = [rows[place] for family in compared for place in (family.baseline, *family.others)]
    few = any(len(row.cell.runs) < SEEDS_FOR_A_STAR for row in shown)
    caption = (
        "Paired by problem; 95 % intervals over problems, and over training seeds where there are several. "
        f"*: Holm's p < .05 and at least {SEEDS_FOR_A_STAR} seeds."
        + (" With one seed an interval compares two trained models, not their methods." if few else "")
    )
    return Plot(
        "Differences to the baseline", [panel(family, rows) for family in compared], caption + coverage_note(shown, rows)
    )


def panel(family: Family, rows: Sequence[ReportRow]) -> Panel:
    """Return a family's differences to its baseline in points, as a forest plot."""
    base = rows[family.baseline].label
    overall = {place: family.differences[place]["overall"] for place in family.others}
    order = sorted(family.others, key=lambda place: -overall[place]["difference"])
    series = []
    for at, place in enumerate(order):
        value, low, high = (100 * overall[place][key] for key in ("difference", "low", "high"))
        p = overall[place]["p_holm"]
        tooltip = f"{value:+.1f} points, {low:+.1f} to {high:+.1f}" + (f", Holm's p {p:.3g}" if p is not None else "")
        series.append(Series(rows[place].label, [value], [-float(at)], [tooltip], "row", [low], [high]))
    names = [f"{'* ' if overall[place]['star'] else ''}{rows[place].label}" for place in order]
    return Panel("difference, points of Avg@k", "", series, f"against {base}", names=names)
