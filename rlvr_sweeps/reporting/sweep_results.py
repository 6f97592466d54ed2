"""Read the results of a sweep file's rows (conf/sweep/*.yaml) for one model, from the same overrides as the launch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hydra.core.override_parser.overrides_parser import OverridesParser

from rlvr_sweeps.config.compose import Composer, offline_composer
from rlvr_sweeps.config.lr_grid import split_auto
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.sweeps import Product, RowSpec, key_of, load_product, refuse_fixed_keys
from rlvr_sweeps.config.sweeps import seeds as first_seeds
from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.reporting.rows import Cell, Source, from_files
from rlvr_sweeps.runs.directory import Run


@dataclass(frozen=True)
class RowResult:
    """A row of a product and the results of its finished runs; `cell` is None where no run is finished."""

    row: RowSpec
    cfg: Resolved  # of its first seed
    cell: Cell | None
    runs: tuple[Run, ...]  # one per seed; a row that trains nothing has one
    unreadable: tuple[str, ...] = ()  # a sentence for each run with a damaged file; the cell does not contain it

    def without(self, run: Run, sentence: str) -> "RowResult":
        """Return the row without the results of a run that proved damaged."""
        assert self.cell
        cell = Cell(self.cell.cfg)
        for other, summary, right in zip(self.cell.runs, self.cell.summaries, self.cell.right, strict=True):
            if other.path != run.path:
                cell.runs.append(other)
                cell.summaries.append(summary)
                cell.right.append(right)
        return replace(self, cell=cell if cell.runs else None, unreadable=(*self.unreadable, sentence))


def read_row_results(
    product: Product, composer: Composer, base: Sequence[str], seeds: Sequence[int] | None = None, source: Source = from_files
) -> list[RowResult]:
    """Return every row of a product with its results; a run with a damaged file is left out and named.

    `base`: overrides that all rows share, `model=` and `runs_dir=` among them; `seeds`: by default those of the product.
    """
    results = []
    for row in product.rows:
        row_keys = {key_of(override) for override in row.overrides}
        shared = [f"sweep={product.name}", *(override for override in base if key_of(override) not in row_keys)]
        by_name: dict[str, tuple[Run, Resolved]] = {}
        for seed in seeds or first_seeds(product.sections[row.section].seeds):
            cfg = composer.point([*row.overrides, *shared, f"seed={seed}"]).cfg
            by_name.setdefault(Run.of(cfg).name, (Run.of(cfg), cfg))
        results.append(result_of(row, list(by_name.values()), source))
    return results


def result_of(row: RowSpec, runs: Sequence[tuple[Run, Resolved]], source: Source = from_files) -> RowResult:
    """Return a row with the results of its runs, one per seed; a run with a damaged file is left out and named."""
    cell, unreadable = Cell(runs[0][1]), []
    for run, cfg in runs:
        try:
            result = source(run, cfg)
        except Damaged as damage:
            unreadable.append(unreadable_sentence(run, damage))
            continue
        if result:
            cell.runs.append(run)
            cell.summaries.append(result.summary)
            cell.right.append(result.right)
    return RowResult(row, runs[0][1], cell if cell.runs else None, tuple(run for run, _ in runs), tuple(unreadable))


def unreadable_sentence(run: Run, damage: Damaged) -> str:
    """Return the sentence on a run that is left out because a file is damaged."""
    return f"{run.name} is unreadable and left out: {damage}"


@dataclass(frozen=True)
class SweepResults:
    """A product for one model, with the results of its finished runs."""

    product: Product
    composer: Composer
    overrides: tuple[str, ...]  # those of the command
    base: tuple[str, ...]  # those that all rows share: `overrides` without the seeds
    rows: list[RowResult]
    model: str  # the model of the overrides; a row may set a different model (Table 6)


def read_sweep_results(name: str, overrides: Sequence[str], source: Source = from_files) -> SweepResults:
    """Return a product's rows and results for the overrides of its launch (model=, seed=, runs_dir=, …; lr=auto too).

    Raises Refused for a list of values of a key other than `seed`, and for a key that the rows set.
    """
    composer = offline_composer()
    others, bound = split_auto(overrides)
    base, seeds = split_seeds(others)
    model = model_of(base, composer)
    product = load_product(name, model, composer)
    refuse_fixed_keys(product.sections, model, others)
    if bound:
        from rlvr_sweeps.reporting.lr_search import tuned_product  # here: it imports this module

        product, base = tuned_product(product, composer, base, seeds, bound, source)
    return SweepResults(
        product, composer, tuple(overrides), tuple(base), read_row_results(product, composer, base, seeds, source), model
    )


def split_seeds(overrides: Sequence[str]) -> tuple[list[str], list[int] | None]:
    """Return the overrides without the seeds, and the seeds; None where the overrides name none.

    Raises Refused for a list of values of another key.
    """
    base, seeds = [], None
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        values = override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_element_as_str()]
        if override.get_key_element() == "seed":
            seeds = [int(value) for value in values]
        elif override.is_sweep_override():
            raise Refused(f"{override.input_line}: a table has one value of {override.get_key_element()} for all of its rows.")
        else:
            base.append(str(override.input_line))
    return base, seeds


def model_of(base: Sequence[str], composer: Composer) -> str:
    """Return the name of the model that the overrides choose."""
    return str(composer.compose([override for override in base if not key_of(override).startswith("hydra")]).model.name)
