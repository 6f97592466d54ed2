"""Differences to a baseline with their intervals, as a forest plot; the numbers are the report's own (`baseline.py`)."""

from collections.abc import Sequence

from rlvr_sweeps.baseline import SEEDS_FOR_A_STAR, Family, families
from rlvr_sweeps.panels import Panel, Plot, Row, Series, counted


def forest(rows: Sequence[Row], found: Sequence[Family] | None = None) -> Plot | None:
    """Paired differences to the baseline with 95 % intervals, the largest first, a panel per model; None without two rows.

    `found`: the differences, where they are computed already.
    """
    found = families([row.cell for row in rows])[0] if found is None else found
    if not found:
        return None
    shown = [rows[place] for family in found for place in (family.baseline, *family.others)]
    few = any(len(row.cell.runs) < SEEDS_FOR_A_STAR for row in shown)
    caption = (
        "Paired by problem; 95 % intervals over problems, and over training seeds where there are several. "
        f"*: Holm's p < .05 and at least {SEEDS_FOR_A_STAR} seeds."
        + (" With one seed an interval speaks of two trained models, not of their methods." if few else "")
    )
    return Plot("Differences to the baseline", [panel(family, rows) for family in found], caption + counted(shown, rows))


def panel(family: Family, rows: Sequence[Row]) -> Panel:
    base = rows[family.baseline].label
    overall = {place: family.differences[place]["overall"] for place in family.others}
    order = sorted(family.others, key=lambda place: -overall[place]["difference"])
    series = []
    for at, place in enumerate(order):
        value, low, high = (100 * overall[place][key] for key in ("difference", "low", "high"))
        p = overall[place]["p_holm"]
        says = f"{value:+.1f} points, {low:+.1f} to {high:+.1f}" + (f", Holm's p {p:.3g}" if p is not None else "")
        series.append(Series(rows[place].label, [value], [-float(at)], [says], "row", [low], [high]))
    names = [f"{'* ' if overall[place]['star'] else ''}{rows[place].label}" for place in order]
    return Panel("difference, points of Avg@k", "", series, f"against {base}", names=names)
