"""TODO: rlvr_sweeps.reporting.tables.accuracy."""

from collections.abc import Sequence
from dataclasses import replace

from rlvr_sweeps.config.settings import averaged_benchmarks
from rlvr_sweeps.config.sweeps import key_of
from rlvr_sweeps.reporting.differences.baselines import Contrast, contrasts
from rlvr_sweeps.reporting.sweep_results import Asked, Filled
from rlvr_sweeps.reporting.tables.cells import difference_entry, mean_of, row_facts, row_head, with_best
from rlvr_sweeps.reporting.tables.footnotes import footnotes
from rlvr_sweeps.reporting.tables.formats import Column, Entry, Line, Sheet
from rlvr_sweeps.runs.directory import Run

BASELINE = "peft=lora"  # with every other dial its model's own: what the paper varies one thing around
TITLES = {
    "aime24": "AIME24", "aime25": "AIME25", "amc": "AMC", "hmmt": "HMMT", "math500": "MATH500", "minerva": "Minerva",
}  # fmt: skip


def baseline_of(asked: Asked, row: Filled) -> str:
    """The name of the run that a row is compared with: LoRA as its model's own dials have it, with the row's seed."""
    model = [override for override in row.row.overrides if key_of(override) == "model"]
    rest = [override for override in asked.base if not (model and key_of(override) == "model")]
    seed = f"seed={row.cfg['seed']}"
    return Run.of(asked.composer.point([f"sweep={asked.product.name}", *rest, *model, BASELINE, seed]).cfg).name


def accuracy(asked: Asked) -> Sheet:
    """Avg and Pass by benchmark and overall, and each row's difference to LoRA."""
    rows, product = asked.rows, asked.product
    names = averaged_benchmarks(rows[0].cfg["benchmark"])
    found: dict[str, Contrast] = {}
    baselines = set()
    for model in dict.fromkeys(row.cfg["model"]["name"] for row in rows):  # LoRA of a row's own model
        same = [row for row in rows if row.cfg["model"]["name"] == model]
        baseline = baseline_of(asked, same[0])
        baselines.add(baseline)
        found |= contrasts(same, baseline)
    columns = accuracy_columns(rows, names)
    blocks: dict[str, list[Line]] = {}
    for row in rows:
        line = accuracy_line(row, names, found.get(row.asked[0].name), row.asked[0].name in baselines)
        blocks.setdefault(product.sections[row.row.section].title, []).append(line)
    bold = [f"{name}/{kind}" for name in [*names, "overall"] for kind in ("avg", "pass")]
    blocks = {title: with_best(lines, bold) for title, lines in blocks.items()}
    notes = footnotes(product, asked.typed, rows, found)
    return Sheet(product.name, product.title, columns, blocks, notes)


def accuracy_columns(rows: Sequence[Filled], names: Sequence[str]) -> list[Column]:
    k = {name: source["k"] for name, source in rows[0].cfg["benchmark"].items()}
    columns = [Column("row", "", align="left")]
    if any(row.row.label != row.row.stands_for for row in rows):
        columns.append(Column("stands_for", "in the paper", align="left"))
    columns.append(Column("seeds", "seeds"))
    for name in names:
        columns.append(Column(f"{name}/avg", f"Avg@{k[name]}", TITLES.get(name, name)))
        columns.append(Column(f"{name}/pass", f"Pass@{k[name]}", TITLES.get(name, name), detail=True))
        if any(name in row.row.printed for row in rows):
            columns.append(Column(f"{name}/paper", "paper", TITLES.get(name, name)))
    overall = [("overall/avg", "Avg"), ("overall/pass", "Pass"), ("overall/paper", "paper")]
    return [*columns, *(Column(key, title, "Overall") for key, title in overall), Column("difference", "Δ LoRA", align="left")]


def accuracy_line(row: Filled, names: Sequence[str], contrast: Contrast | None, is_baseline: bool) -> Line:
    entries: dict[str, Entry] = row_head(row)
    cell = row.cell
    for name in names:
        entries |= {f"{name}/avg": mean_of(cell, f"{name}/avg"), f"{name}/pass": mean_of(cell, f"{name}/pass")}
        entries[f"{name}/paper"] = Entry(row.row.printed.get(name))
    overall = replace(mean_of(cell, "avg", with_error=True), star=contrast is not None and contrast.star)
    entries |= {"overall/avg": overall, "overall/pass": mean_of(cell, "pass")}
    entries["overall/paper"] = Entry(row.row.printed.get("overall"))
    entries["difference"], facts = difference_entry(contrast, is_baseline)
    return Line(entries, row_facts(row) | facts)
