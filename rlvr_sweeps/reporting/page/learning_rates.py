"""Make the page's section on learning rates: each row's held-out accuracy by rate, and whether the best is inside."""

from collections.abc import Sequence
from typing import Any

from rlvr_sweeps.config.identity import digest, evaluation_spec
from rlvr_sweeps.config.settings import HELD_OUT, is_trained
from rlvr_sweeps.config.sweeps import RowSpec, format_value
from rlvr_sweeps.reporting.labels import DIALS, label_with_objective
from rlvr_sweeps.reporting.rows import Cell, row_of
from rlvr_sweeps.reporting.sweep_results import RowResult
from rlvr_sweeps.reporting.tables.learning_rates import choose, curve


def rate_entries(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return, for every row with several learning rates and held-out prompts: label, curve, best rate, and where it is."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if is_trained(cell.cfg) and cell.value(f"{HELD_OUT}/avg") is not None:
            settings = {key: value for key, value in row_of(cell.cfg).items() if key != "lr"}
            groups.setdefault(digest(settings | {"evaluation": evaluation_spec(cell.cfg)}), []).append(cell)
    entries = []
    for group in groups.values():
        if len({cell.cfg["lr"] for cell in group}) < 2:
            continue
        dials = [dial for dial in DIALS if dial != "lr"]
        label = label_with_objective(group[0], cells, dials)
        choice = choose(label, [RowResult(RowSpec("", "", (), "", {}), cell.cfg, cell, tuple(cell.runs)) for cell in group])
        state = f"at the {'lower' if choice.best == 0 else 'upper'} edge: a better rate may be outside"
        state = "not to be told: all rates are equally good" if choice.is_flat else state if choice.at_edge else "inside"
        entries.append({
            "label": label,
            "curve": curve(choice),
            "best": format_value(str(choice.lrs[choice.best])),
            "state": state,
        })  # fmt: skip
    return entries
