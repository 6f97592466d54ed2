"""A table's rows against its baseline: paired differences, Holm over the table, stars, and what can be told apart at all."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rlvr_sweeps.baseline import ALPHA, SEEDS_FOR_A_STAR, seeds
from rlvr_sweeps.collect import Cell, Filled
from rlvr_sweeps.comparison import refuse_unlike, request, scores_of
from rlvr_sweeps.differences import Arm, Difference, difference, holm
from rlvr_sweeps.identity import exams

POWER = (1.959964 + 0.841621) / 1.959964  # from an interval's half width to what is found four times in five


@dataclass(frozen=True)
class Contrast:
    """A row's difference to the baseline, as accuracy, and whether it earns a star."""

    difference: Difference
    p_holm: float
    star: bool


def contrasts(rows: Sequence[Filled], baseline: str) -> dict[str, Contrast]:
    """By a row's first run, its contrast to the row whose first run is called `baseline`. Rows that share a run are one.

    None for rows without a result, and none at all where the baseline has none. Refused where rows were evaluated differently.
    """
    cells = {row.asked[0].name: row.cell for row in rows if row.cell and all(row.cell.right)}
    base = cells.pop(baseline, None)
    if base is None or not cells:
        return {}
    refuse_unlike({
        run.name: request(summary, right)
        for cell in (base, *cells.values())
        for run, summary, right in zip(cell.runs, cell.summaries, cell.right, strict=True)
    })  # fmt: skip
    found = {name: difference(arm(cell), arm(base)) for name, cell in cells.items()}
    adjusted = holm([one.p for one in found.values()])
    return {
        name: Contrast(one, p, p < ALPHA and min(seeds(cells[name]), seeds(base)) >= SEEDS_FOR_A_STAR)
        for (name, one), p in zip(found.items(), adjusted, strict=True)
    }


def arm(cell: Cell) -> Arm:
    scores = scores_of(cell.right)
    return [scores[name] for name in exams(scores)]


def smallest_difference(found: Sequence[Contrast]) -> float | None:
    """The accuracy difference to the baseline that is found four times in five at the 5 % level, before Holm's correction.

    From the intervals of the table itself: the median half width, which holds problems, samples and, where there are several,
    seeds; times (1.96 + 0.84)/1.96. None without contrasts.
    """
    widths = [(one.difference.high - one.difference.low) / 2 for one in found]
    return POWER * statistics.median(widths) if widths else None
