"""Build the accuracy tables: Avg@k and Pass@k of every row, the paper's values, and each row's difference to LoRA."""

from collections.abc import Sequence
from dataclasses import replace

from rlvr_sweeps.config.settings import averaged_benchmarks
from rlvr_sweeps.config.sweeps import key_of
from rlvr_sweeps.reporting.differences.baselines import Contrast, contrasts
from rlvr_sweeps.reporting.sweep_results import RowResult, SweepResults
from rlvr_sweeps.reporting.tables.cells import difference_entry, mean_of, row_facts, row_head, with_best
from rlvr_sweeps.reporting.tables.footnotes import footnotes
from rlvr_sweeps.reporting.tables.formats import Column, Entry, Line, Sheet
from rlvr_sweeps.runs.directory import Run

BASELINE = "peft=lora"  # every other dial as conf/model sets it: the paper varies one dial at a time from this setting
TITLES = {
    "aime24": "AIME24", "aime25": "AIME25", "amc": "AMC", "hmmt": "HMMT", "math500": "MATH500", "minerva": "Minerva",
}  # fmt: skip


def baseline_of(results: SweepResults, row: RowResult) -> str:
    """Return the name of the run that a row is compared with: LoRA with the dials of the row's model and the row's seed."""
    model = [override for override in row.row.overrides if key_of(override) == "model"]
    shared = [override for override in results.base if not (model and key_of(override) == "model")]
    seed = f"seed={row.cfg['seed']}"
    return Run.of(results.composer.point([f"sweep={results.product.name}", *shared, *model, BASELINE, seed]).cfg).name


def accuracy(results: SweepResults) -> Sheet:
    """Return the table of Avg and Pass by benchmark and overall, with each row's difference to LoRA."""
    rows, product = results.rows, results.product
    names = averaged_benchmarks(rows[0].cfg["benchmark"])
    contrast_by_run: dict[str, Contrast] = {}
    baselines = set()
    for model in dict.fromkeys(row.cfg["model"]["name"] for row in rows):  # LoRA of a row's own model
        model_rows = [row for row in rows if row.cfg["model"]["name"] == model]
        baseline = baseline_of(results, model_rows[0])
        baselines.add(baseline)
        contrast_by_run |= contrasts(model_rows, baseline)
    columns = accuracy_columns(rows, names)
    blocks: dict[str, list[Line]] = {}
    for row in rows:
        line = accuracy_line(row, names, contrast_by_run.get(row.runs[0].name), row.runs[0].name in baselines)
        blocks.setdefault(product.sections[row.row.section].title, []).append(line)
    bold = [f"{name}/{kind}" for name in [*names, "overall"] for kind in ("avg", "pass")]
    blocks = {title: with_best(lines, bold) for title, lines in blocks.items()}
    notes = footnotes(product, results.overrides, rows, contrast_by_run)
    return Sheet(product.name, product.title, columns, blocks, notes)


def accuracy_columns(rows: Sequence[RowResult], names: Sequence[str]) -> list[Column]:
    """Return the columns of the table: the row, its seeds, each benchmark, overall, and the difference to LoRA."""
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
    overall = [("overall/avg", "Avg"), ("overall/pass", "Pass")]
    if any(row.row.printed for row in rows):
        overall.append(("overall/paper", "paper"))
    return [*columns, *(Column(key, title, "Overall") for key, title in overall), Column("difference", "Δ LoRA", align="left")]


def accuracy_line(row: RowResult, names: Sequence[str], contrast: Contrast | None, is_baseline: bool) -> Line:
    """Return a row's line: its accuracies, the paper's values, and its difference to LoRA."""
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
