"""Plot accuracy against trained parameters (Figure 1 left), learning rate, reach and cost; and paired differences."""

from collections.abc import Callable, Sequence

from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.config.sweeps import format_value
from rlvr_sweeps.evaluation.samples import mean
from rlvr_sweeps.reporting import lost_updates
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
BARS = "Bars: ± the standard error, over seeds where a row has several, over sampled completions where it has one."
Measure = Callable[[ReportRow], float | None]


def accuracy_point(row: ReportRow, x: float, x_text: str) -> Series | None:
    """Return a row's accuracy in percent at x, with its standard error; None where it was not evaluated."""
    value, error = row.cell.value("avg"), row.cell.error("avg")
    if value is None:
        return None
    y, bar = 100 * value, None if error is None else 100 * error
    tooltips = [f"{x_text}: {plus_minus(y, bar)}"]
    return Series(row.label, [x], [y], tooltips, "points", *(([y - bar], [y + bar]) if bar is not None else (None, None)))


def joined(label: str, points: Sequence[Series]) -> Series:
    """Return the points of one method as one line, in their order; error bars only where all have them."""
    low = [point.low[0] for point in points if point.low]
    high = [point.high[0] for point in points if point.high]
    bars = (low, high) if len(low) == len(high) == len(points) else (None, None)
    x, y, tooltips = ([value for point in points for value in getattr(point, name)] for name in ("x", "y", "tooltips"))
    return Series(label, x, y, tooltips, "joined" if len(points) > 1 else "points", *bars)


def base_level(rows: Sequence[ReportRow]) -> dict[str, float]:
    """Return the accuracy in percent of the untrained rows, by label."""
    values = {row.label: row.cell.value("avg") for row in rows if not is_trained(row.cell.cfg)}
    return {label: 100 * value for label, value in values.items() if value is not None}


def trained_percent(row: ReportRow) -> float | None:
    """Return the trained parameters in percent of the model's parameters; None where a number is missing."""
    trainable, total = row.cell.value("trainable"), row.cell.value("parameters")
    return 100 * trainable / total if trainable and total else None


def frontier(points: Sequence[Series]) -> Series | None:
    """Return the Pareto frontier (most accurate points for their trained parameters or fewer); None for fewer than two."""
    best: list[Series] = []
    for point in sorted(points, key=lambda point: (point.x[0], -point.y[0])):
        if not best or point.y[0] > best[-1].y[0]:
            best.append(point)
    if len(best) < 2:
        return None
    x, y, labels = [point.x[0] for point in best], [point.y[0] for point in best], [point.label for point in best]
    return Series("Pareto frontier", x, y, labels, "frontier")


def parameters(rows: Sequence[ReportRow]) -> Plot | None:
    """Return Figure 1 left: accuracy against the share of trained parameters."""
    by_label = {row.label: row for row in trained_rows(rows)}
    shares = {label: share for label, row in by_label.items() if (share := trained_percent(row)) is not None}
    points = [
        point
        for label, share in shares.items()
        if (point := accuracy_point(by_label[label], share, f"{three_digits(share)} % trained"))
    ]
    if not points:
        return None
    printed = [
        Series(
            "printed in the paper",
            [shares[point.label]],
            [value],
            [f"{point.label}, printed in the paper: {value:g} %"],
            "printed",
        )
        for point in points
        if (value := by_label[point.label].printed.get("overall")) is not None
    ]
    pareto = frontier(points)
    panel = Panel(
        "trained parameters, % of the model", ACCURACY, [*([pareto] if pareto else []), *points, *printed],
        "after training", x_log=True, levels=base_level(rows),
    )  # fmt: skip
    shown = [by_label[point.label] for point in points]
    caption = BARS
    caption += (
        " Dotted line: the Pareto frontier, which no method with as many or fewer trained parameters exceeds." if pareto else ""
    )
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
    for method, method_rows in methods.items():
        points = [
            point
            for row in method_rows
            if (point := accuracy_point(row, measure(row) or 0.0, x_text(measure(row) or 0.0, row)))
        ]
        series.append(joined(method, points))
        shown += method_rows
    return series, shown


def learning_rates(rows: Sequence[ReportRow]) -> Plot | None:
    """Return accuracy against learning rate, a line per method; None where no method has two rates."""
    series, shown = lines(rows, lambda row: float(row.cell.cfg["lr"]), lambda x, _: f"lr {format_value(str(x))}")
    if all(len(line.x) < 2 for line in series):
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
        rows, reach_percent, lambda x, row: f"lr {format_value(str(row.cell.cfg['lr']))}, reach {three_digits(x)} %"
    )
    if not series:
        return None
    panel = Panel("reach ‖ΔW‖/‖W0‖, %", ACCURACY, series, x_log=True, levels=base_level(rows))
    caption = (
        f"{BARS} Reach is the relative change of the weights by training. A line joins one method's learning rates."
        f"{''.join(f' {note}' for note in lost_updates.notes((row.label, row.cell) for row in shown))}"
        f"{coverage_note(shown, trained_rows(rows))}"
    )
    return Plot("Accuracy against reach", [panel], caption)


def reach_percent(row: ReportRow) -> float | None:
    """Return the row's reach in percent; None where it was not measured."""
    reach = row.cell.value("reach")
    return 100 * reach if reach else None


def costs(rows: Sequence[ReportRow]) -> Plot | None:
    """Return accuracy against device time and generated tokens of a run, mean over seeds; core-minutes without a GPU."""
    shown = [row for row in trained_rows(rows) if row.cell.value("avg") is not None]
    by_label = {row.label: costs_of(row.cell) for row in shown}
    on_gpus = any(run_cost.device for run_costs in by_label.values() for run_cost in run_costs)
    unit, units_per_hour = ("GPU-hours", 1) if on_gpus else ("core-minutes", 60)
    times = {label: [units_per_hour * cost.device_hours for cost in run_costs] for label, run_costs in by_label.items()}
    tokens = {
        label: [cost.trained_tokens / 1e6 for cost in run_costs if cost.trained_tokens is not None]
        for label, run_costs in by_label.items()
    }
    panels = []
    for x_label, x_unit, values in (
        (f"training and evaluation, {unit}", unit, times),
        ("tokens generated in training, millions", "million tokens", tokens),
    ):
        means = [(row, mean(run_values)) for row in shown if (run_values := values[row.label]) and mean(run_values) > 0]
        series = [point for row, x in means if (point := accuracy_point(row, x, f"{three_digits(x)} {x_unit}"))]
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

    One panel per family of comparable rows. `compared` holds the differences where they are already computed.
    """
    compared = families([row.cell for row in rows])[0] if compared is None else compared
    if not compared:
        return None
    shown = [rows[index] for family in compared for index in (family.baseline, *family.compared)]
    few_seeds = any(len(row.cell.runs) < SEEDS_FOR_A_STAR for row in shown)
    caption = (
        "Paired by problem; 95 % intervals over problems, and over training seeds where there are several. "
        f"*: Holm's p < .05 and at least {SEEDS_FOR_A_STAR} seeds."
        + (" With one seed an interval compares two trained models, not their methods." if few_seeds else "")
    )
    return Plot(
        "Differences to the baseline", [forest_panel(family, rows) for family in compared], caption + coverage_note(shown, rows)
    )


def forest_panel(family: Family, rows: Sequence[ReportRow]) -> Panel:
    """Return a family's differences to its baseline in points, as a forest plot."""
    base = rows[family.baseline].label
    overall = {index: family.differences[index]["overall"] for index in family.compared}
    order = sorted(family.compared, key=lambda index: -overall[index]["difference"])
    series = []
    for position, index in enumerate(order):
        value, low, high = (100 * overall[index][key] for key in ("difference", "low", "high"))
        p = overall[index]["p_holm"]
        tooltip = f"{value:+.1f} points, {low:+.1f} to {high:+.1f}" + (f", Holm's p {p:.3g}" if p is not None else "")
        series.append(Series(rows[index].label, [value], [-float(position)], [tooltip], "row", [low], [high]))
    names = [f"{'* ' if overall[index]['star'] else ''}{rows[index].label}" for index in order]
    return Panel("difference, points of Avg@k", "", series, f"against {base}", names=names)
