"""Plot curves over training: reward against step (Figures 1 right, 3 right, 4, 5)."""

import statistics
from collections.abc import Sequence

from rlvr_sweeps.reporting.figures.plots import Panel, Plot, Series
from rlvr_sweeps.reporting.labels import ReportRow, coverage_note, trained_rows
from rlvr_sweeps.reporting.rows import reward_curves

WINDOW = 9  # steps of the moving average
POINTS = 256  # most points drawn of a curve, evenly spaced: more than a page resolves
REWARD = "accuracy reward, %"
BAND = (
    f"Accuracy reward over all sampled completions, {WINDOW}-step moving average; a band spans the lowest to the highest seed."
)
# Section of a product -> title of its panel. The sections of a report are objectives, whose names are the titles.
PANELS = {"algo": "objective", "lr": "learning rate", "methods": "during training", "spectra": "during training"}


def smooth(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """Return the centred moving average, with shorter windows at the ends."""
    half = window // 2
    return [statistics.fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def reward_series(row: ReportRow) -> Series | None:
    """Return the mean over seeds of the smoothed reward in percent, up to the last common step; None without a step."""
    curves = [smooth(curve) for curve in reward_curves(row.cell)]
    steps = min(map(len, curves), default=0)
    if not steps:
        return None
    count = min(steps, POINTS)
    step_indices = [round(index * (steps - 1) / max(1, count - 1)) for index in range(count)]
    columns = [[100 * curve[index] for curve in curves] for index in step_indices]
    means = [statistics.fmean(column) for column in columns]
    tooltips = [f"step {index + 1}: {mean:.1f} %" for index, mean in zip(step_indices, means, strict=True)]
    several = len(curves) > 1
    low, high = ([min(column) for column in columns], [max(column) for column in columns]) if several else (None, None)
    return Series(
        row.section_label or row.label, [float(index + 1) for index in step_indices], means, tooltips, "line", low, high
    )


def reward_panel(rows: Sequence[ReportRow], title: str = "") -> Panel | None:
    """Return a panel of the trained rows' reward curves; None without a curve."""
    series = [curve for row in trained_rows(rows) if (curve := reward_series(row))]
    return Panel("optimizer step", REWARD, series, title, from_zero=True) if series else None


def rewards(rows: Sequence[ReportRow]) -> Plot | None:
    """Return a panel per section: an objective in a report, the varied setting in Figure 4; None without a curve."""
    sections = list(dict.fromkeys(row.section for row in trained_rows(rows)))
    by_section = {section: [row for row in rows if row.section == section] for section in sections}
    panels = [panel for section in sections if (panel := reward_panel(by_section[section], PANELS.get(section, section)))]
    shown = [row for row in trained_rows(rows) if any(reward_curves(row.cell))]
    caption = BAND + coverage_note(shown, trained_rows(rows))
    return Plot("Reward during training", panels, caption, share_y=True) if panels else None


def batch_sizes(rows: Sequence[ReportRow], benchmark: str) -> Plot | None:
    """Return Figure 5: reward curves by batch size, and the trained models' accuracy on one benchmark; None without both."""
    curves = reward_panel(rows, "during training")
    scored = [row for row in trained_rows(rows) if row.cell.value(f"{benchmark}/avg") is not None]
    if not curves or not scored:
        return None
    series = []
    for row in sorted(scored, key=lambda row: int(row.cell.cfg["batch_size"])):
        value, error = 100 * (row.cell.value(f"{benchmark}/avg") or 0), row.cell.error(f"{benchmark}/avg")
        bar = None if error is None else 100 * error
        tooltip = f"{value:.1f}" + (f" ± {bar:.1f}" if bar is not None else "") + " %"
        low, high = ([value - bar], [value + bar]) if bar is not None else (None, None)
        series.append(Series(row.label, [float(row.cell.cfg["batch_size"])], [value], [tooltip], "points", low, high))
    k = scored[0].cell.cfg["benchmark"][benchmark]["k"]
    right = Panel("batch size, completions", f"{benchmark}, Avg@{k}, %", series, f"{benchmark} after training", x_log=True)
    coverage = coverage_note(scored, trained_rows(rows))
    caption = f"{BAND} Right: accuracy on {benchmark} after training, ± its standard error.{coverage}"
    return Plot("Batch size", [curves, right], caption)
