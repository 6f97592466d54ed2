"""Energy of weight updates over the base model's singular components (Figure 3 left and centre), from runs' analyses."""

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from rlvr_sweeps.files import read_object
from rlvr_sweeps.reporting.figures.plots import Panel, Plot, Series
from rlvr_sweeps.reporting.labels import ReportRow, coverage_note, trained_rows

Side = Literal["e", "f"]
BINS = 32  # of the distribution; cumulative curves have twice as many steps
COMPONENTS = "singular components of W0, largest first, %"
ENERGY = (
    "ΔW is the trained minus the published weights in float32, W0 = USVᵀ. The energy of a component is ‖ΔW v‖², where v is its "
    "column of V, divided by the sum over all components. Mean over layers, kinds of layer and seeds"
)


def spectra_of(row: ReportRow) -> list[dict[str, Any]]:
    """Return, by seed, the spectra of the kinds of layer that changed; empty where any seed has none (or no analysis)."""
    spectra = [(read_object(run.analysis_path, "spectra") or {"spectra": {}})["spectra"] for run in row.cell.runs]
    moved = [{kind: curves for kind, curves in kinds.items() if curves["layers"]} for kinds in spectra]
    return moved if all(moved) else []


def cumulative(curve: Sequence[float], points: int) -> list[float]:
    """Return the `points` + 1 cumulative sums of a binned curve at equal steps, from 0; linear within a bin."""
    sums = [0.0]
    for value in curve:
        sums.append(sums[-1] + value)
    values = []
    for index in range(points + 1):
        position = index * len(curve) / points  # in bins
        low = min(int(position), len(curve) - 1)
        values.append(sums[low] + (position - low) * (sums[low + 1] - sums[low]))
    return values


def mean_cumulative(row: ReportRow, side: Side, points: int, kinds: Sequence[str] | None = None) -> list[list[float]]:
    """Return, by seed, the mean cumulative energy over the kinds of layer that changed, or over `kinds` among them."""
    means = []
    for spectra in spectra_of(row):
        curves = [cumulative(curves[side], points) for kind, curves in spectra.items() if kinds is None or kind in kinds]
        if curves:
            means.append([statistics.fmean(values) for values in zip(*curves, strict=True)])
    return means


def cumulative_series(row: ReportRow, side: Side, kinds: Sequence[str] | None = None) -> Series | None:
    """Return a row's cumulative energy in percent, the mean over seeds; None without an analysis."""
    curves = [[100 * value for value in curve] for curve in mean_cumulative(row, side, 2 * BINS, kinds)]
    if not curves:
        return None
    columns = list(zip(*curves, strict=True))
    x, y = [100 * index / (2 * BINS) for index in range(2 * BINS + 1)], [statistics.fmean(column) for column in columns]
    tooltips = [
        f"{value:.1f} % of the energy in the first {share:.0f} % of the components" for share, value in zip(x, y, strict=True)
    ]
    low, high = (list(map(min, columns)), list(map(max, columns))) if len(curves) > 1 else (None, None)
    return Series(row.label, x, y, tooltips, "line", low, high)


def distribution_series(row: ReportRow, side: Side) -> Series | None:
    """Return the energy by bin relative to evenly spread energy (1 is even), the mean over seeds; None without an analysis."""
    densities = [[BINS * (high - low) for low, high in pairwise(curve)] for curve in mean_cumulative(row, side, BINS)]
    if not densities:
        return None
    y = [statistics.fmean(column) for column in zip(*densities, strict=True)]
    x = [100 * (index + 0.5) / BINS for index in range(BINS)]
    tooltips = [f"at {share:.0f} %: {value:.2f} × even" for share, value in zip(x, y, strict=True)]
    return Series(row.label, x, y, tooltips, "stairs")


def spectrum_panels(rows: Sequence[ReportRow]) -> list[Panel]:
    """Return the panels of Figure 3 left and centre, for the input side (right singular vectors)."""
    distributions = [series for row in rows if (series := distribution_series(row, "e"))]
    sums = [series for row in rows if (series := cumulative_series(row, "e"))]
    if not sums:
        return []
    even = Series("spread evenly", [0.0, 100.0], [0.0, 100.0], ["spread evenly"] * 2, "frontier")
    return [
        Panel(COMPONENTS, "energy of ΔW, even spread = 1", distributions, "distribution of ΔW", y_log=True, levels={"": 1.0}),
        Panel(COMPONENTS, "cumulative energy of ΔW, %", [even, *sums], "cumulative energy"),
    ]


def spectrum(rows: Sequence[ReportRow]) -> Plot | None:
    """Return Figure 3 left and centre; None without an analysed row."""
    panels = spectrum_panels(trained_rows(rows))
    shown = [row for row in trained_rows(rows) if spectra_of(row)]
    return (
        Plot("Where ΔW lies in W0's spectrum", panels, f"{ENERGY}.{coverage_note(shown, trained_rows(rows))}")
        if panels
        else None
    )


def by_kind(rows: Sequence[ReportRow]) -> Plot | None:
    """Return the cumulative energy by kind of layer, above of the input side, below of the output side."""
    shown = [row for row in trained_rows(rows) if spectra_of(row)]
    moved = {kind for row in shown for spectra in spectra_of(row) for kind in spectra}
    kinds = [kind for kind in shown[0].cell.cfg["model"]["linear_modules"] if kind in moved] if shown else []
    panels = []
    sides: tuple[tuple[Side, str], ...] = (("e", "input side, %"), ("f", "output side, %"))
    for side, y_label in sides:
        for index, kind in enumerate(kinds):
            curves = [series for row in shown if (series := cumulative_series(row, side, [kind]))]
            panels.append(Panel("components, %" if side == "f" else "", y_label if not index else "", curves, kind))
    caption = (
        "Cumulative energy of ΔW over the singular components of W0, largest first: ‖ΔW v‖² above and ‖uᵀΔW‖² below, where v "
        "and u are a component's right and left singular vectors. "
        f"The part of a non-square ΔW outside of W0's components is left out.{coverage_note(shown, trained_rows(rows))}"
    )
    return Plot("ΔW in W0's spectrum, by kind of layer", panels, caption, columns=len(kinds), share_y=True) if panels else None
