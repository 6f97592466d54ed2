"""Compare every method at the common learning rate and at its own, chosen on held-out training prompts, never on benchmarks.

All methods get the same rates and the same steps. A method's own rate is the one with the highest accuracy on the held-out
prompts. Its sensitivity is the span, in powers of ten, of the rates next to the best one that lose at most a point on those
prompts, or at most one standard error of the difference if that is more: a wide span means that the choice hardly matters.
Benchmarks are read after the choice, so that it does not bias their accuracy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlvr_sweeps.config.lr_grid import Score, best_of, is_good
from rlvr_sweeps.config.settings import HELD_OUT
from rlvr_sweeps.config.sweeps import format_value, key_of, label, printed_values
from rlvr_sweeps.reporting.differences.baselines import Contrast, contrasts
from rlvr_sweeps.reporting.sweep_results import RowResult, SweepResults
from rlvr_sweeps.reporting.tables.cells import difference_entry, mean_of, row_facts, with_best
from rlvr_sweeps.reporting.tables.footnotes import footnotes
from rlvr_sweeps.reporting.tables.formats import Column, Entry, Line, Sheet


@dataclass(frozen=True)
class Choice:
    """A method's rows by rising learning rate; indices of the best rate, and of the first and last good rate around it."""

    title: str
    rows: list[RowResult]
    best: int
    first: int
    last: int

    @property
    def lrs(self) -> list[float]:
        """Return the learning rates, in rising order."""
        return [float(row.cfg["lr"]) for row in self.rows]

    @property
    def complete(self) -> bool:
        """Return whether every rate has all of its runs; until then, no rate is chosen."""
        return all(row.cell and len(row.cell.runs) == len(row.runs) for row in self.rows)

    @property
    def width(self) -> float:
        """Return the powers of ten between the lowest and the highest good rate."""
        return math.log10(self.lrs[self.last] / self.lrs[self.first])

    @property
    def is_flat(self) -> bool:
        """Return whether all rates are good."""
        return self.first == 0 and self.last == len(self.rows) - 1

    @property
    def at_edge(self) -> bool:
        """Return whether the best rate is the lowest or highest of the grid, so that a better rate may be outside of it."""
        return self.best in (0, len(self.rows) - 1)


def choose(title: str, rows: Sequence[RowResult]) -> Choice:
    """Return a method's best rate on the held-out prompts, and the good rates around it."""
    ordered = sorted(rows, key=lambda row: float(row.cfg["lr"]))
    scores = [held_out(row) for row in ordered]
    best = best_of([value for value, _ in scores])
    first = last = best
    while first > 0 and is_good(scores[first - 1], scores[best]):
        first -= 1
    while last < len(ordered) - 1 and is_good(scores[last + 1], scores[best]):
        last += 1
    return Choice(title, ordered, best, first, last)


def held_out(row: RowResult) -> Score:
    """Return the accuracy on the held-out prompts and its standard error; NaN if it was not measured."""
    value = row.cell.value(f"{HELD_OUT}/avg") if row.cell else None
    error = row.cell.error(f"{HELD_OUT}/avg") if row.cell else None
    return (math.nan if value is None else value), (error or 0.0)


def curve(choice: Choice) -> str:
    """Return the held-out accuracy in percent by learning rate; a star marks the best one, a dash a missing run."""
    texts = []
    for index, row in enumerate(choice.rows):
        score, _ = held_out(row)
        value = "-" if math.isnan(score) else f"{100 * score:.1f}"
        texts.append(f"{format_value(str(row.cfg['lr']))} {value}{'*' * (choice.complete and index == choice.best)}")
    return ", ".join(texts)


def common_lr(results: SweepResults) -> float:
    """Return the learning rate of the model's configuration, which all methods share."""
    return float(results.composer.compose([override for override in results.base if not override.startswith("hydra")]).lr)


def sheet(results: SweepResults) -> Sheet:
    """Return the table: a row per method with its accuracy at the common and at its own rate, the gain, and the sensitivity."""
    choices = {key: choose(title, rows) for key, (title, rows) in by_row(results).items()}
    common = common_lr(results)
    shared = [row for choice in choices.values() for row in choice.rows if float(row.cfg["lr"]) == common]
    own = [choice.rows[choice.best] for choice in choices.values() if choice.complete]
    baselines = baseline_of(shared, results), baseline_of(own, results)
    at_common, at_own = contrasts(shared, baselines[0]), contrasts(own, baselines[1])
    blocks: dict[str, list[Line]] = {}
    for (section, *_), choice in choices.items():
        line = line_of(choice, common, at_common, at_own, baselines, results.product.sections[section].table)
        blocks.setdefault(results.product.sections[section].title, []).append(line)
    common_title, pairs = f"lr {format_value(str(common))}", [("avg", "Avg"), ("difference", "Δ LoRA")]
    columns = [
        Column("row", "", align="left"), *(Column(f"common/{key}", title, common_title) for key, title in pairs),
        *(Column(f"own/{key}", title, "own lr") for key, title in [("lr", "lr"), *pairs]),
        Column("gain", "gain", form="+.1f"), Column("width", "sensitivity"), Column("paper", "paper"),
        Column("curve", "held-out prompts, % by lr", align="left", detail=True),
    ]  # fmt: skip
    blocks = {title: with_best(lines, ["common/avg", "own/avg"]) for title, lines in blocks.items()}
    notes = [*choice_notes(list(choices.values())), *footnotes(results.product, results.overrides, results.rows, at_own)]
    return Sheet(results.product.name, results.product.title, columns, blocks, notes)


def by_row(results: SweepResults) -> dict[tuple[str, ...], tuple[str, list[RowResult]]]:
    """Return the rows that differ in lr alone, with their label without lr, by section and overrides."""
    groups: dict[tuple[str, ...], list[RowResult]] = {}
    for row in results.rows:
        groups.setdefault((row.row.section, *(each for each in row.row.overrides if key_of(each) != "lr")), []).append(row)
    return {key: (label(key[1:], [other[1:] for other in groups if other[0] == key[0]]), rows) for key, rows in groups.items()}


def baseline_of(rows: Sequence[RowResult], results: SweepResults) -> str:
    """Return the first run of the LoRA row among the rows; of several, of the one with the adapter that peft=lora has."""
    base = [override for override in results.base if not override.startswith("hydra")]
    adapter = results.composer.point([*base, "peft=lora"]).cfg["peft"]["config"]
    lora = [row for row in rows if row.cfg["peft"]["name"] == "lora"]
    return next((row for row in lora if row.cfg["peft"]["config"] == adapter), lora[0]).runs[0].name if lora else ""


def line_of(
    choice: Choice,
    common: float,
    at_common: Mapping[str, Contrast],
    at_own: Mapping[str, Contrast],
    baselines: Sequence[str],
    table: str | None,
) -> Line:
    """Return a row's line; `table`: the table of paper/reference.csv that has its printed value."""
    by_lr = {float(row.cfg["lr"]): row for row in choice.rows}
    shared, own = by_lr.get(common), choice.rows[choice.best] if choice.complete else None
    entries = {"row": Entry(choice.title), "paper": Entry(printed_values(table, choice.title).get("overall"))}
    entries["curve"] = Entry(curve(choice))
    facts: dict[str, object] = {}
    for key, row, contrast_by_run in (("common", shared, at_common), ("own", own, at_own)):
        contrast = contrast_by_run.get(row.runs[0].name) if row else None
        average = mean_of(row.cell if row else None, "avg", with_error=True)
        entries[f"{key}/avg"] = replace(average, star=contrast is not None and contrast.star)
        entries[f"{key}/difference"], numbers = difference_entry(contrast, row is not None and row.runs[0].name in baselines)
        facts |= {f"{key}/{name}": value for name, value in ((row_facts(row) if row else {}) | numbers).items()}
    if own:
        entries["own/lr"] = Entry(format_value(str(own.cfg["lr"])) + (" (edge)" if choice.at_edge else ""))
        open_ended = choice.first == 0 or choice.last == len(choice.rows) - 1
        entries["width"] = Entry(f"{'≥ ' if open_ended else ''}{choice.width:.1f}")
        before, after = entries["common/avg"].value, entries["own/avg"].value
        if isinstance(before, float) and isinstance(after, float):
            entries["gain"] = Entry(after - before)
        facts |= {
            "own/lr": choice.lrs[choice.best],
            "own/lr_low": choice.lrs[choice.first],
            "own/lr_high": choice.lrs[choice.last],
        }
    for row in choice.rows:
        value, _ = held_out(row)
        facts[f"{HELD_OUT}/{format_value(str(row.cfg['lr']))}"] = None if math.isnan(value) else 100 * value
    return Line(entries, facts)


def choice_notes(choices: Sequence[Choice]) -> list[str]:
    """Return the footnotes on the choice of the rates and on the sensitivity."""
    edges = [choice.title for choice in choices if choice.complete and choice.at_edge]
    lrs = ", ".join(format_value(str(lr)) for lr in choices[0].lrs)
    same = all(choice.lrs == choices[0].lrs for choice in choices)
    rates = f"Every row was trained at {lrs}" if same else "Rates were added where the best one was at an edge of a row's grid"
    return [
        f"{rates}; steps are equal. The own lr is the best on held-out training prompts, not on the benchmarks. (edge): the "
        "lowest or highest lr of the grid, so a better lr may be outside. A dash: runs are missing.",
        *([f"The best lr is at an edge for {', '.join(edges)}. To extend their grids: lr=auto."] if edges else []),
        "Sensitivity: the span of lr around the own lr, in powers of ten, whose accuracy on the held-out prompts is at most a "
        "point, or one standard error of the difference, below the best; ≥ where the span reaches the end of the grid.",
    ]
