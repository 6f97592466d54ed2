"""Build Table 4: count each method's trained parameters on the true shapes of the paper's models, without weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlvr_sweeps.config.compose import Composer
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.sweeps import paper_models, reference
from rlvr_sweeps.reporting.sweep_results import SweepResults
from rlvr_sweeps.reporting.tables.cells import mean_of, row_facts, row_head
from rlvr_sweeps.reporting.tables.footnotes import footnotes
from rlvr_sweeps.reporting.tables.formats import Column, Entry, Line, Sheet
from rlvr_sweeps.training.build_check import parameter_counts
from rlvr_sweeps.training.methods.adapters import attach


def trained_parameters(results: SweepResults) -> Sheet:
    """Return Table 4: trained parameters on the shapes of the paper's models, and accuracy."""
    shapes = dict(paper_models())
    if has_own_model := results.model not in paper_models() and any(row.cell for row in results.rows):
        shapes["own"] = results.model
    columns = [Column("row", "", align="left")]
    for key, model in shapes.items():
        columns += [Column(f"{key}/trained", "trained", model, form=",.0f"), Column(f"{key}/share", "%", model, form=".4g")]
    columns += [Column("printed", "printed %", form=".4g"), Column("seeds", "seeds")]
    columns += [Column("overall/avg", "Avg", "Overall"), Column("overall/paper", "paper", "Overall")]
    count_of_rows = count_rows(results.composer, [" ".join(row.row.overrides).removeprefix("peft=") for row in results.rows])
    blocks: dict[str, list[Line]] = {}
    differences = []
    for row, count in zip(results.rows, count_of_rows, strict=True):
        sizes = {
            key: (float(trained), share)
            for key, trained, share in zip(paper_models(), count.trained, count.shares, strict=True)
        }
        if has_own_model and row.cell:
            first = row.cell.summaries[0]
            sizes["own"] = float(first["trainable"]), 100 * first["trainable"] / first["parameters"]
        entries = row_head(row) | {"printed": Entry(count.printed_percent, star=bool(count.note))}
        for key, (trained, share) in sizes.items():
            entries |= {f"{key}/trained": Entry(trained), f"{key}/share": Entry(share)}
        entries |= {"overall/avg": mean_of(row.cell, "avg", True), "overall/paper": Entry(row.row.printed.get("overall"))}
        differences += [f"{row.row.label}: {count.note}"] if count.note else []
        blocks.setdefault(results.product.sections[row.row.section].title, []).append(Line(entries, row_facts(row)))
    notes = footnotes(results.product, results.overrides, results.rows, {})
    note = f"* The printed share differs from the counted share. {'. '.join(differences)}." if differences else ""
    return Sheet(results.product.name, results.product.title, columns, blocks, [note, *notes] if note else notes)


EXPLANATIONS = {
    "lora": "1.55 % is six modules, without gate_proj; the text says all linear modules",
    "lora rank=1": "0.0015 % is not rank 1 of any set of modules: all seven give 0.065 %, six 0.048 %",
    "miss": "0.99 % is neither all seven modules nor the released q, v at rank 64 (0.18 %)",
    "vera": "0.0029 % is q and v alone, PEFT's default (variant vera_qv)",
    "ln_tuning": "0.0035 % is neither every norm nor post_attention_layernorm alone (0.0024 %, variant ln_tuning_post)",
}
ROUNDING = 0.005  # relative: more than half a unit of the last printed digit of every share


@dataclass(frozen=True)
class CountRow:
    """A method's trained parameters on each model, and the share that the paper prints for the 1.5B model."""

    row: str
    title: str
    trained: tuple[int, ...]
    shares: tuple[float, ...]  # percent of the base
    printed_percent: float | None
    note: str


def count_rows(composer: Composer, rows: Sequence[str]) -> list[CountRow]:
    """Return the counts of each row; a row is a method and its dials, as in "lora rank=1"."""
    printed = printed_shares()
    count_of_rows = []
    for row in rows:
        peft, *dials = row.split()
        sizes = []
        for model in paper_models():
            cfg = composer.point([f"model={model}", "rollout=hf", "distributed=single", f"peft={peft}", *dials]).cfg
            sizes.append(parameter_counts(skeleton(cfg)))
        shares = tuple(100 * size["trainable"] / size["base"] for size in sizes)
        printed_share = printed.get(row)
        differs = printed_share is not None and abs(shares[0] - printed_share) > ROUNDING * printed_share
        title = " ".join([cfg["peft"]["title"], *(dial.replace("rank=", "r=") for dial in dials)])
        note = EXPLANATIONS.get(row, "not explained") if differs else ""
        count_of_rows.append(CountRow(row, title, tuple(size["trainable"] for size in sizes), shares, printed_share, note))
    return count_of_rows


def skeleton(cfg: Resolved) -> Any:
    """Return the adapted model on the meta device: names and shapes without values."""
    architecture = dict(cfg["model"]["architecture"])
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture.pop("model_type"), **architecture))
        return attach(base, cfg["peft"], seed=0)


def printed_shares() -> dict[str, float]:
    """Return the trainable shares of the paper's Table 4, in percent, by method and dials."""
    key = ("table4", "trainable")
    return {line["method"]: float(line["percent"]) for line in reference() if (line["table"], line["metric"]) == key}
