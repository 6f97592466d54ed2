"""The paper's tables from what there is of their runs: ours beside the printed value, intervals, stars, what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console

from rlvr_sweeps.collect import Cell, Filled, Source, fill, from_files
from rlvr_sweeps.compose import Composer, offline_composer
from rlvr_sweeps.contrasts import Contrast, contrasts
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.footnotes import footnotes
from rlvr_sweeps.formats import Column, Entry, Line, Sheet, show, write
from rlvr_sweeps.identity import exams, is_trained
from rlvr_sweeps.products import Product, key_of, load_product, refuse_taken
from rlvr_sweeps.run import Run

BASELINE = "peft=lora"  # with every other dial its model's own: what the paper varies one thing around
TITLES = {
    "aime24": "AIME24", "aime25": "AIME25", "amc": "AMC", "hmmt": "HMMT", "math500": "MATH500", "minerva": "Minerva",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A product for one model, with what there is of its runs."""

    product: Product
    composer: Composer
    typed: tuple[str, ...]  # the overrides as given
    base: tuple[str, ...]  # those of them that all rows share: without seeds
    rows: list[Filled]
    model: str  # as asked: a row may name another (Table 6)


def gather(name: str, overrides: Sequence[str], source: Source = from_files) -> Asked:
    """The product's rows for the same overrides that launch.py was given: model=, seed=, runs_dir= and whatever else."""
    composer = offline_composer()
    base, seeds = [], None
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        values = override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_element_as_str()]
        if override.get_key_element() == "seed":
            seeds = [int(value) for value in values]
        elif override.is_sweep_override():
            raise Refused(f"{override.input_line}: a table has one value of {override.get_key_element()} for all of its rows.")
        else:
            base.append(str(override.input_line))
    model = str(composer.compose([one for one in base if not key_of(one).startswith("hydra")]).model.name)
    product = load_product(name, model, composer)
    refuse_taken(product.sections, model, overrides)
    return Asked(product, composer, tuple(overrides), tuple(base), fill(product, composer, base, seeds, source), model)


def make(name: str, overrides: Sequence[str], source: Source = from_files) -> tuple[str, Sheet]:
    """(the model's name, the table)."""
    asked = gather(name, overrides, source)
    if name == "lr_fair":
        from rlvr_sweeps import fairness

        return asked.model, fairness.sheet(asked)
    if name == "table4":
        return asked.model, trained_parameters(asked)
    return asked.model, accuracy(asked)


def render(name: str, overrides: Sequence[str], out: Path | None, console: Console, source: Source = from_files) -> list[Path]:
    """Show a table and write it in every format into `out`, results/<model> by default."""
    with console.status("reading"):
        model, sheet = make(name, overrides, source)
    show(sheet, console)
    paths = write(sheet, out or Path("results") / model)
    console.print(f"written: {paths[0].parent}/{sheet.name} .md .tex .csv .json", highlight=False, soft_wrap=True)
    return paths


def baseline_of(asked: Asked, row: Filled) -> str:
    """The name of the run that a row is compared with: LoRA as its model's own dials have it, with the row's seed."""
    model = [override for override in row.row.overrides if key_of(override) == "model"]
    rest = [override for override in asked.base if not (model and key_of(override) == "model")]
    seed = f"seed={row.cfg['seed']}"
    return Run.of(asked.composer.point([f"sweep={asked.product.name}", *rest, *model, BASELINE, seed]).cfg).name


def accuracy(asked: Asked) -> Sheet:
    """Avg and Pass by benchmark and overall, and each row's difference to LoRA."""
    rows, product = asked.rows, asked.product
    names = exams(rows[0].cfg["benchmark"])
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


def difference_entry(contrast: Contrast | None, is_baseline: bool) -> tuple[Entry, dict[str, Any]]:
    """`+1.2 [-0.5, +2.9]` in points, and the numbers behind it."""
    if contrast is None:
        return Entry("baseline" if is_baseline else None), {}
    one = contrast.difference
    value, low, high = 100 * one.value, 100 * one.low, 100 * one.high
    facts = {"points": value, "low": low, "high": high, "p": one.p, "p_holm": contrast.p_holm, "star": contrast.star}
    return Entry(f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"), facts


def row_head(row: Filled) -> dict[str, Entry]:
    """What a row is called, and how many of its seeds are there."""
    done = len(row.cell.runs) if row.cell else 0
    seeds = f"{done}" if done == len(row.asked) else f"{done}/{len(row.asked)}"
    return {
        "row": Entry(row.row.label), "stands_for": Entry(row.row.stands_for),
        "seeds": Entry(seeds if is_trained(row.cfg) or not done else None),
    }  # fmt: skip


def row_facts(row: Filled) -> dict[str, Any]:
    cell = row.cell
    facts: dict[str, Any] = {"overrides": " ".join(row.row.overrides), "stands_for": row.row.stands_for}
    facts |= {"runs": " ".join(run.name for run in row.asked), "runs_done": len(cell.runs) if cell else 0}
    facts |= {"runs_asked": len(row.asked)}
    return facts | interval(cell) if cell else facts


def interval(cell: Cell) -> dict[str, Any]:
    """95 % interval of a row's overall accuracy on these problems: Student's t over seeds; of one seed, samples alone."""
    from scipy import stats  # half a second

    value, error, seeds = cell.value("avg"), cell.error("avg"), len(cell.runs)
    if value is None or error is None:
        return {}
    reach = float(stats.norm.ppf(0.975) if seeds == 1 else stats.t.ppf(0.975, seeds - 1)) * error
    known = "samples" if seeds == 1 else "seeds and samples"
    return {"overall/low": 100 * (value - reach), "overall/high": 100 * (value + reach), "interval_from": known}


def mean_of(cell: Cell | None, column: str, with_error: bool = False) -> Entry:
    """A summary's column over a row's seeds, in percent."""
    value = cell.value(column) if cell else None
    error = cell.error(column) if cell and with_error else None
    return Entry(None if value is None else 100 * value, None if error is None else 100 * error)


def with_best(lines: Sequence[Line], keys: Sequence[str]) -> list[Line]:
    """The same lines with the highest of each column in bold, where there are several to choose from."""
    values = {key: [v for line in lines if isinstance(v := line.entries[key].value, float)] for key in keys}
    best = {key: max(found) for key, found in values.items() if len(found) > 1}
    return [
        replace(line, entries={
            key: replace(entry, best=key in best and entry.value == best[key])
            for key, entry in line.entries.items()
        })
        for line in lines
    ]  # fmt: skip


def trained_parameters(asked: Asked) -> Sheet:
    """Table 4: trained parameters on the true shapes of the paper's models (this needs torch, but no weights), and accuracy."""
    from rlvr_sweeps.counts import MODELS, count_rows

    shapes = dict(MODELS)
    if own := asked.model not in MODELS and any(row.cell for row in asked.rows):
        shapes["own"] = asked.model
    columns = [Column("row", "", align="left")]
    for key, model in shapes.items():
        columns += [Column(f"{key}/trained", "trained", model, form=",.0f"), Column(f"{key}/share", "%", model, form=".4g")]
    columns += [Column("printed", "printed %", form=".4g"), Column("seeds", "seeds")]
    columns += [Column("overall/avg", "Avg", "Overall"), Column("overall/paper", "paper", "Overall")]
    counted = count_rows(asked.composer, [" ".join(row.row.overrides).removeprefix("peft=") for row in asked.rows])
    blocks: dict[str, list[Line]] = {}
    explained = []
    for row, count in zip(asked.rows, counted, strict=True):
        sizes = {key: (float(trained), share) for key, trained, share in zip(MODELS, count.trained, count.shares, strict=True)}
        if own and row.cell:
            first = row.cell.summaries[0]
            sizes["own"] = float(first["trainable"]), 100 * first["trainable"] / first["parameters"]
        entries = row_head(row) | {"printed": Entry(count.printed_percent, star=bool(count.note))}
        for key, (trained, share) in sizes.items():
            entries |= {f"{key}/trained": Entry(trained), f"{key}/share": Entry(share)}
        entries |= {"overall/avg": mean_of(row.cell, "avg", True), "overall/paper": Entry(row.row.printed.get("overall"))}
        explained += [f"{row.row.label}: {count.note}"] if count.note else []
        blocks.setdefault(asked.product.sections[row.row.section].title, []).append(Line(entries, row_facts(row)))
    notes = footnotes(asked.product, asked.typed, asked.rows, {})
    differs = f"* The printed share is not what counting gives. {'. '.join(explained)}." if explained else ""
    return Sheet(asked.product.name, asked.product.title, columns, blocks, [differs, *notes] if differs else notes)
