"""Compare every method at the common learning rate and at its own, chosen on held-out training prompts, never on benchmarks.

All methods get the same rates and the same steps. A method's own rate is the one with the highest accuracy on the held-out
prompts. Its sensitivity is the span, in powers of ten, of the rates next to the best one that lose at most a point on those
prompts, or at most one standard error of the difference if that is more: a wide span means that the choice hardly matters.
Benchmarks are read after the choice, so that it does not bias their accuracy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlvr_sweeps.config.settings import HELD_OUT
from rlvr_sweeps.config.sweeps import format_value, printed_values
from rlvr_sweeps.reporting.differences.baselines import Contrast, contrasts
from rlvr_sweeps.reporting.sweep_results import RowResult, SweepResults
from rlvr_sweeps.reporting.tables.cells import difference_entry, mean_of, row_facts, with_best
from rlvr_sweeps.reporting.tables.footnotes import footnotes
from rlvr_sweeps.reporting.tables.formats import Column, Entry, Line, Sheet

POINT = 0.01  # of accuracy: a rate counts as good if it loses at most this to the best


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
    def at_edge(self) -> bool:
        """Return whether the best rate is the lowest or highest of the grid, so that a better rate may be outside of it."""
        return self.best in (0, len(self.rows) - 1)


def choose(title: str, rows: Sequence[RowResult]) -> Choice:
    """Return a method's best rate on the held-out prompts, and the good rates around it."""
    ordered = sorted(rows, key=lambda row: float(row.cfg["lr"]))
    scores = [held_out(row) for row in ordered]
    measured = [index for index, (value, _) in enumerate(scores) if not math.isnan(value)]
    best = max(measured, key=lambda index: scores[index][0], default=0)
    first = last = best
    while first > 0 and is_good(scores[first - 1], scores[best]):
        first -= 1
    while last < len(ordered) - 1 and is_good(scores[last + 1], scores[best]):
        last += 1
    return Choice(title, ordered, best, first, last)


def is_good(score: tuple[float, float], best: tuple[float, float]) -> bool:
    """Return whether a rate's accuracy is within a point, or one standard error of the difference, of the best."""
    return best[0] - score[0] <= max(POINT, math.hypot(score[1], best[1]))


def held_out(row: RowResult) -> tuple[float, float]:
    """Return the accuracy on the held-out prompts and its standard error; NaN if it was not measured."""
    value = row.cell.value(f"{HELD_OUT}/avg") if row.cell else None
    error = row.cell.error(f"{HELD_OUT}/avg") if row.cell else None
    return (math.nan if value is None else value), (error or 0.0)


def common_lr(results: SweepResults) -> float:
    """Return the learning rate of the model's configuration, which all methods share."""
    return float(results.composer.compose([override for override in results.base if not override.startswith("hydra")]).lr)


def sheet(results: SweepResults) -> Sheet:
    """Return the table: a row per method with its accuracy at the common and at its own rate, the gain, and the sensitivity."""
    by_method: dict[str, list[RowResult]] = {}
    for row in results.rows:
        by_method.setdefault(row.cfg["peft"]["title"], []).append(row)
    choices = [choose(title, rows) for title, rows in by_method.items()]
    common = common_lr(results)
    shared = [row for choice in choices for row in choice.rows if float(row.cfg["lr"]) == common]
    own = [choice.rows[choice.best] for choice in choices if choice.complete]
    at_common, at_own = against_lora(shared), against_lora(own)
    lines = [line_of(choice, common, at_common, at_own) for choice in choices]
    common_title, pairs = f"lr {format_value(str(common))}", [("avg", "Avg"), ("difference", "Δ LoRA")]
    columns = [
        Column("row", "", align="left"), *(Column(f"common/{key}", title, common_title) for key, title in pairs),
        *(Column(f"own/{key}", title, "own lr") for key, title in [("lr", "lr"), *pairs]),
        Column("gain", "gain", form="+.1f"), Column("width", "sensitivity"), Column("paper", "paper"),
    ]  # fmt: skip
    lines = with_best(lines, ["common/avg", "own/avg"])
    notes = [*choice_notes(choices), *footnotes(results.product, results.overrides, results.rows, at_own)]
    return Sheet(results.product.name, results.product.title, columns, {"Methods": lines}, notes)


def against_lora(rows: Sequence[RowResult]) -> Mapping[str, Contrast]:
    """Return the rows' contrasts to the LoRA row among them."""
    lora = next((row.runs[0].name for row in rows if row.cfg["peft"]["name"] == "lora"), "")
    return contrasts(rows, lora)


def line_of(choice: Choice, common: float, at_common: Mapping[str, Contrast], at_own: Mapping[str, Contrast]) -> Line:
    """Return a method's line of the table."""
    by_lr = {float(row.cfg["lr"]): row for row in choice.rows}
    shared, own = by_lr.get(common), choice.rows[choice.best] if choice.complete else None
    entries = {"row": Entry(choice.title), "paper": Entry(printed_values("table3", choice.title).get("overall"))}
    facts: dict[str, object] = {}
    for key, row, contrast_by_run in (("common", shared, at_common), ("own", own, at_own)):
        contrast = contrast_by_run.get(row.runs[0].name) if row else None
        average = mean_of(row.cell if row else None, "avg", with_error=True)
        entries[f"{key}/avg"] = replace(average, star=contrast is not None and contrast.star)
        entries[f"{key}/difference"], numbers = difference_entry(
            contrast, row is not None and row.cfg["peft"]["name"] == "lora"
        )
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
    lrs = ", ".join(format_value(str(lr)) for lr in choices[0].lrs)
    return [
        f"Every method was trained at {lrs}, with equal steps. Its own lr is the best on held-out training prompts, "
        "not on the benchmarks. (edge): the lowest or highest lr of the grid, so a better lr may be outside. A dash: "
        "runs are missing.",
        "Sensitivity: the span of lr around the own lr, in powers of ten, whose accuracy on the held-out prompts is at most a "
        "point, or one standard error of the difference, below the best; ≥ where the span reaches the end of the grid.",
    ]
