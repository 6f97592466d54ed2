"""Compare rows with their baseline: `families` for a report's rows, `contrasts` for the rows of a table.

Both give paired differences with 95 % intervals, p-values after Holm's correction, and stars.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlvr_sweeps.config.settings import averaged_benchmarks, is_trained
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.reporting.differences.bootstrap import Arm, Difference, difference, holm
from rlvr_sweeps.reporting.differences.compare import Side, against, read_scores, refuse_unlike, request, request_of, scores_of
from rlvr_sweeps.reporting.rows import Cell, row_of
from rlvr_sweeps.reporting.sweep_results import RowResult

SEEDS_FOR_P = 2  # in every trained arm: with one seed, p would compare two trained models, not two methods
SEEDS_FOR_A_STAR = 3
ALPHA = 0.05


@dataclass(frozen=True)
class Family:
    """Rows of one model with the same evaluation, by index: the baseline and the rows compared with it."""

    baseline: int
    compared: list[int]
    differences: dict[int, dict[str, dict[str, Any]]]  # by index, then benchmark or `overall`: a row of `compare`, with `star`


def families(rows: Sequence[Cell]) -> tuple[list[Family], list[str]]:
    """Return every family of at least two rows, and a sentence for each row that could not be compared."""
    groups: dict[str, list[int]] = {}
    left_out = []
    for index, cell in enumerate(rows):
        try:
            requests = {str((cell.cfg["model"]["name"], *request_of(run))) for run in cell.runs}
        except Refused as refusal:
            left_out.append(str(refusal))
            continue
        if len(requests) > 1:
            left_out.append(f"The seeds of {cell.runs[0].name} were not evaluated on the same problems.")
            continue
        groups.setdefault(requests.pop(), []).append(index)
    return [family(rows, indices) for indices in groups.values() if len(indices) > 1], left_out


def family(rows: Sequence[Cell], indices: Sequence[int]) -> Family:
    """Return the family of the rows at `indices`, compared with their baseline."""
    baseline = baseline_index(rows, indices)
    compared = [index for index in indices if index != baseline]
    sides = {index: Side(rows[index].runs[0].name, rows[index].runs, read_scores(rows[index].runs)) for index in indices}
    differences: dict[int, dict[str, dict[str, Any]]] = {index: {} for index in compared}
    tested = [index for index in compared if min(seeds(rows[index]), seeds(rows[baseline])) >= SEEDS_FOR_P]
    for part in (tested, [index for index in compared if index not in tested]):
        by_label = {sides[index].label: index for index in part}
        for row in against(sides[baseline], [sides[index] for index in part]) if part else ():
            index = by_label[row["b"]]
            star = row["p_holm"] < ALPHA and min(seeds(rows[index]), seeds(rows[baseline])) >= SEEDS_FOR_A_STAR
            p_holm = row["p_holm"] if part is tested else None
            differences[index][row["benchmark"]] = row | {"p_holm": p_holm, "star": star}
    return Family(baseline, compared, differences)


def baseline_index(rows: Sequence[Cell], indices: Sequence[int]) -> int:
    """Return the index of the baseline: the LoRA row (else trained row, else row) that differs least from the others."""
    trained = [index for index in indices if is_trained(rows[index].cfg)]
    lora = [index for index in trained if rows[index].cfg["peft"]["name"] == "lora"]
    settings = {index: row_of(rows[index].cfg) for index in indices}

    def differing_settings(index: int) -> int:
        row = settings[index]
        return sum(row.get(key) != each.get(key) for each in settings.values() for key in row.keys() | each.keys())

    return min(lora or trained or indices, key=lambda index: (differing_settings(index), index))


def seeds(cell: Cell) -> float:
    """Return the number of training seeds of a row; infinity for an untrained row, which does not depend on a seed."""
    return len(cell.runs) if is_trained(cell.cfg) else math.inf


POWER = (1.959964 + 0.841621) / 1.959964  # of an interval's half width: the difference that is detected four times in five


@dataclass(frozen=True)
class Contrast:
    """A row's difference to the baseline, as accuracy, and whether it has a star."""

    difference: Difference
    p_holm: float
    star: bool


def contrasts(rows: Sequence[RowResult], baseline: str) -> dict[str, Contrast]:
    """Return each row's contrast to the row whose first run is `baseline`, by the name of the row's first run.

    Rows that share a run count once. Rows without a result are left out; without a result of the baseline, all rows are. Raise
    Refused where rows were evaluated differently.
    """
    cells = {row.runs[0].name: row.cell for row in rows if row.cell and all(row.cell.right)}
    base = cells.pop(baseline, None)
    if base is None or not cells:
        return {}
    refuse_unlike({
        run.name: request(summary, right)
        for cell in (base, *cells.values())
        for run, summary, right in zip(cell.runs, cell.summaries, cell.right, strict=True)
    })  # fmt: skip
    differences = {name: difference(arm(cell), arm(base)) for name, cell in cells.items()}
    adjusted = holm([result.p for result in differences.values()])
    return {
        name: Contrast(result, p, p < ALPHA and min(seeds(cells[name]), seeds(base)) >= SEEDS_FOR_A_STAR)
        for (name, result), p in zip(differences.items(), adjusted, strict=True)
    }


def arm(cell: Cell) -> Arm:
    """Return a row's share of right samples, one array (seeds, problems) per averaged benchmark."""
    scores = scores_of(cell.right)
    return [scores[name] for name in averaged_benchmarks(scores)]


def smallest_difference(contrasts: Sequence[Contrast]) -> float | None:
    """Return the accuracy difference that is detected four times in five at the 5 % level, before Holm's correction.

    It is the median half width of the table's intervals (problems, samples and, if there are several, seeds) times
    (1.96 + 0.84)/1.96. None without contrasts.
    """
    widths = [(contrast.difference.high - contrast.difference.low) / 2 for contrast in contrasts]
    return POWER * statistics.median(widths) if widths else None
