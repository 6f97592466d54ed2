"""Show and write the paper's tables from the finished runs (`rlvr table`)."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlvr_sweeps.config.settings import HELD_OUT
from rlvr_sweeps.config.sweeps import key_of
from rlvr_sweeps.reporting.rows import Source, from_files
from rlvr_sweeps.reporting.sweep_results import RowResult, read_sweep_results
from rlvr_sweeps.reporting.tables.accuracy import accuracy
from rlvr_sweeps.reporting.tables.formats import Sheet, show, write


def make(name: str, overrides: Sequence[str], source: Source = from_files) -> tuple[str, Sheet]:
    """Return (the model's name, the table)."""
    results = read_sweep_results(name, overrides, source)
    if any(HELD_OUT in row.cfg["benchmark"] and has_rates(row, results.rows) for row in results.rows):
        from rlvr_sweeps.reporting.tables import learning_rates

        return results.model, learning_rates.sheet(results)
    if name == "table4":
        from rlvr_sweeps.reporting.tables.parameters import trained_parameters  # counts on torch's meta device

        return results.model, trained_parameters(results)
    return results.model, accuracy(results)


def has_rates(row: RowResult, rows: Sequence[RowResult]) -> bool:
    """Return whether a row has others that differ from it in the learning rate alone."""
    others = [{each for each in other.row.overrides if key_of(each) != "lr"} for other in rows]
    return others.count({each for each in row.row.overrides if key_of(each) != "lr"}) > 1


def render(name: str, overrides: Sequence[str], out: Path | None, console: Console, source: Source = from_files) -> list[Path]:
    """Show a table and write it in every format into `out`, results/<model> by default."""
    with console.status("reading"):
        model, sheet = make(name, overrides, source)
    show(sheet, console)
    paths = write(sheet, out or Path("results") / model)
    console.print(f"written: {paths[0].parent}/{sheet.name} .md .tex .csv .json", highlight=False, soft_wrap=True)
    return paths
