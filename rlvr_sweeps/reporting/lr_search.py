"""Find the grid of learning rates that each row of an `lr=auto` launch has by now, from the results of its runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rlvr_sweeps.config.compose import Composer
from rlvr_sweeps.config.lr_grid import HELD_OUT_OVERRIDES, Score, TunedRow, grown, start, tuned_rows
from rlvr_sweeps.config.settings import HELD_OUT, is_trained
from rlvr_sweeps.config.sweeps import Product, RowSpec, format_value, key_of, label
from rlvr_sweeps.reporting.rows import Source, from_files
from rlvr_sweeps.reporting.sweep_results import RowResult, read_row_results, result_of
from rlvr_sweeps.reporting.tables.learning_rates import Choice, choose, curve, held_out
from rlvr_sweeps.runs.directory import Run

ReadRate = Callable[[float], RowResult]


@dataclass(frozen=True)
class RateGrid:
    """The rates that a row has by now, and the choice among them."""

    row: TunedRow
    rates: tuple[float, ...]
    choice: Choice
    bound: int

    @property
    def state(self) -> str:
        """Return what is known about the best rate, as text."""
        if not is_trained(self.choice.rows[0].cfg):
            return "trains nothing"
        if not self.choice.complete:
            return "runs are missing"
        if self.choice.is_flat:
            return "not to be told: all rates are equally good"
        if not self.choice.at_edge:
            return "inside"
        return f"at the {'lower' if self.choice.best == 0 else 'upper'} edge" + (
            f", and lr=auto:{self.bound} allows no further rate" if len(self.rates) >= self.bound else ""
        )

    @property
    def curve(self) -> str:
        """Return the held-out accuracy in percent by rate; a star marks the best: `3e-4 51.2, 1e-3 63.0*`."""
        return curve(self.choice)


def grid_of(row: TunedRow, own: float, read: ReadRate, bound: int, title: str) -> RateGrid:
    """Return a row's grid, extended as far as its results say; `own`: its learning rate without lr=auto."""
    results: dict[float, RowResult] = {}

    def result(rate: float) -> RowResult:
        if rate not in results:
            results[rate] = read(rate)
        return results[rate]

    def score(rate: float) -> Score | None:
        row_at_rate = result(rate)
        return held_out(row_at_rate) if row_at_rate.cell and len(row_at_rate.cell.runs) == len(row_at_rate.runs) else None

    trained = is_trained(result(own).cfg)
    rates = grown(start(row.rates, own), score, bound) if trained else [own]
    return RateGrid(row, tuple(rates), choose(title, [result(rate) for rate in rates]), bound)


def with_held_out(composer: Composer, overrides: Sequence[str]) -> list[str]:
    """Return overrides with those that lr=auto needs and they lack: held-out prompts, and a stop at a collapse."""
    cfg = composer.compose([each for each in overrides if not key_of(each).startswith("hydra")])
    if HELD_OUT in cfg.benchmark:
        return list(overrides)
    keys = {key_of(each) for each in overrides}
    return [*overrides, *(each for each in HELD_OUT_OVERRIDES if key_of(each) not in keys)]


def grids_of_points(composer: Composer, points: Sequence[Sequence[str]], bound: int) -> list[RateGrid]:
    """Return the grid of every row of a launch, from the overrides of its points."""
    grids = []
    for row in tuned_rows([with_held_out(composer, point) for point in points]):

        def read(rate: float | None, row: TunedRow = row) -> RowResult:
            lr = () if rate is None else (f"lr={rate:g}",)
            cfgs = [composer.point([*row.overrides, *lr, *([seed] if seed else [])]).cfg for seed in row.seeds or ("",)]
            runs = {Run.of(cfg).name: (Run.of(cfg), cfg) for cfg in cfgs}  # an untrained run is the same for all seeds
            return result_of(RowSpec("", "", row.overrides, "", {}), list(runs.values()))

        grids.append(grid_of(row, float(read(None).cfg["lr"]), read, bound, title_of(row, points)))
    return grids


def title_of(row: TunedRow, points: Sequence[Sequence[str]]) -> str:
    """Return the overrides in which a row differs from other rows of the launch: `peft=dora rank=8`; `all` for a single row."""
    varying = [each for each in row.overrides if any(each not in point for point in points) and each not in HELD_OUT_OVERRIDES]
    return " ".join(varying) or "all"


def overrides_of(grids: Sequence[RateGrid]) -> list[list[str]]:
    """Return the points of the grids: every row at each of its rates, with each of its seeds."""
    return [
        [*grid.row.overrides, f"lr={rate:g}", *([seed] if seed else [])]
        for grid in grids
        for rate in grid.rates
        for seed in grid.row.seeds or ("",)
    ]


def at_rate(row: RowSpec, group: TunedRow, rate: float, text: str) -> RowSpec:
    """Return the row of a group at a learning rate; `row`: any row of the group, `text`: their label without lr."""
    written = tuple(each for each in row.written if key_of(each) != "lr")
    return replace(
        row,
        label=f"{text} lr {format_value(str(rate))}",
        overrides=(*group.overrides, f"lr={rate:g}"),
        written=(*written, f"lr={rate:g}"),
    )


def tuned_product(
    product: Product,
    composer: Composer,
    base: Sequence[str],
    seeds: Sequence[int] | None,
    bound: int,
    source: Source = from_files,
) -> tuple[Product, list[str]]:
    """Return a product whose rows have the rates of their grids, and the overrides that all of its runs share."""
    sweep = f"sweep={product.name}"
    shared = [each for each in with_held_out(composer, [sweep, *base]) if each != sweep]
    rows: list[RowSpec] = []
    for key in product.sections:
        in_section = [row for row in product.rows if row.section == key]
        groups = tuned_rows([row.overrides for row in in_section])
        for group in groups:
            first = next(row for row in in_section if set(group.overrides) <= set(row.overrides))
            text = label(group.overrides, [other.overrides for other in groups])

            def spec(rate: float, first: RowSpec = first, group: TunedRow = group, text: str = text) -> RowSpec:
                return at_rate(first, group, rate, text)

            def read(rate: float, spec: Callable[[float], RowSpec] = spec) -> RowResult:
                (result,) = read_row_results(replace(product, rows=(spec(rate),)), composer, shared, seeds, source)
                return result

            own = composer.compose(
                [sweep, *(each for each in shared if not key_of(each).startswith("hydra")), *group.overrides]
            ).lr
            rows += [spec(rate) for rate in grid_of(group, float(own), read, bound, text).rates]
    return replace(product, rows=tuple(rows)), shared
