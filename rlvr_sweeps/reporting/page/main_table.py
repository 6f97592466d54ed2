"""Make a report's main table for the terminal and the page: accuracy by method, objective, dials and benchmark."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from rlvr_sweeps.config.identity import evaluation_spec
from rlvr_sweeps.config.settings import is_trained, modules_of
from rlvr_sweeps.config.sweeps import DIAL_LABELS
from rlvr_sweeps.files import read_object
from rlvr_sweeps.reporting import lost_updates
from rlvr_sweeps.reporting.labels import label, percent
from rlvr_sweeps.reporting.rows import Cell

# A column title has space for the full word.
DIALS = {dial: text for dial, text in DIAL_LABELS.items() if dial != "seed"} | {"rank": "rank"}


def common_k(rows: Sequence[Cell]) -> str:
    """Return the k that all benchmarks share, as text, else `k`."""
    ks = {source["k"] for cell in rows for source in cell.cfg["benchmark"].values()}
    return str(ks.pop()) if len(ks) == 1 else "k"


def dial(cell: Cell, name: str) -> str:
    """Return a row's value of a dial as text; a dash where it has none."""
    if name == "modules":
        return (is_trained(cell.cfg) and modules_of(cell.cfg)) or "-"
    value = cell.summaries[0].get(name)
    return "-" if value is None else f"{value:g}"


def varying(rows: Sequence[Cell]) -> list[str]:
    """Return the dials that have several values among the rows; each becomes a column."""
    return [name for name in DIALS if len({dial(cell, name) for cell in rows} - {"-"}) > 1]


def has_several_models(rows: Sequence[Cell]) -> bool:
    """Return whether the rows are of several base models; the model is then a column."""
    return len({cell.cfg["model"]["name"] for cell in rows}) > 1


def constant(rows: Sequence[Cell]) -> str:
    """Return `rank 8, lr 0.001, …`: the dials with a single value among the rows; without `modules all`."""
    values = {name: {dial(cell, name) for cell in rows} - {"-"} for name in DIALS}
    if values["modules"] == {"all"}:
        del values["modules"]
    return ", ".join(f"{DIALS[name]} {dial_values.pop()}" for name, dial_values in values.items() if len(dial_values) == 1)


def entries(cell: Cell, names: Sequence[str], dials: Sequence[str]) -> dict[str, Any]:
    """Return a row's entries as text, by column; a dash where there is no number."""
    cfg, summary = cell.cfg, cell.summaries[0]
    share = summary["trainable"] / summary["parameters"] if summary["parameters"] else None
    return {
        "model": cfg["model"]["name"],
        "method": cfg["peft"]["title"],
        "algo": cfg["algo"]["title"] if is_trained(cfg) else "-",
        "dials": [dial(cell, name) for name in dials],
        "seeds": len(cell.runs),
        "share": percent(share) if is_trained(cfg) else "-",
        "benchmarks": [percent(cell.value(f"{name}/avg"), cell.error(f"{name}/avg")) for name in names],
        "avg": percent(cell.value("avg"), cell.error("avg")),
        "pass": percent(cell.value("pass")),
        "reach": percent(cell.value("reach")) if is_trained(cfg) else "-",
        "truncated": percent(cell.value("truncated_share")),
        "reward": f"{percent(cell.value('reward_first'))} → {percent(cell.value('reward_last'))}" if is_trained(cfg) else "-",
        "runs": [run.name for run in cell.runs],
    }


def notes(rows: Sequence[Cell]) -> list[str]:
    """Return the sentences below the table: definitions of its columns, and limits of the comparison."""
    sentences = [
        "Avg@k is the mean over the benchmarks. Reward is the mean of the first and of the last 10 training steps. Reach is "
        "the relative change of the weights by training, ‖ΔW‖/‖W0‖ over the model."
    ]
    sentences += [sentence for cell in rows for sentence in cell.stopped_early]
    sentences += lost_updates.notes((label(cell, rows), cell) for cell in rows)
    if any(len(cell.runs) == 1 for cell in rows):
        sentences.append(
            "± is the standard error from sampling each problem k times. A row with one training seed does not show how much "
            "the result varies between seeds."
        )
    if any(len(cell.runs) > 1 for cell in rows):
        sentences.append("Where there are several seeds, ± is the standard error of their mean.")
    if len({evaluation_spec(cell.cfg) for cell in rows}) > 1:
        sentences.append("These rows were not all evaluated in the same way, so their scores cannot be compared.")
    for name, ids in overlaps(rows).items():
        sentences.append(
            f"{len(ids)} problems of {name} share 13 consecutive words with a training prompt (train.json lists them): part of "
            "its scores may be memorised."
        )
    trained = [cell for cell in rows if is_trained(cell.cfg)]
    if len({cell.cfg["peft"]["name"] for cell in trained}) > 1 and len({cell.cfg["lr"] for cell in trained}) == 1:
        sentences.append(
            "All methods share one learning rate, at which their weights change by different amounts (reach): a ranking at "
            "one rate is confounded with step size. Compare methods over several rates each."
        )
    return sentences


def overlaps(rows: Sequence[Cell]) -> dict[str, set[str]]:
    """Return, by benchmark, the problems that overlap with a training prompt of any run in the table."""
    problems: dict[str, set[str]] = {}
    for run in (run for cell in rows for run in cell.runs):
        for name, ids in ((read_object(run.record_path) or {}).get("data", {}).get("overlap") or {}).items():
            problems.setdefault(name, set()).update(ids)
    return problems


def show(rows: Sequence[Cell], console: Console) -> None:
    """Print the table and its notes in the terminal."""
    k = common_k(rows)
    table = Table(title="Accuracy in percent", title_justify="left", header_style="dim", box=None, pad_edge=False)
    texts = ("model", "method", "algo") if has_several_models(rows) else ("method", "algo")
    for column in texts:
        table.add_column("objective" if column == "algo" else column)
    dials = varying(rows)
    numbers = ("seeds", "trained %", f"Avg@{k}", f"Pass@{k}", "cut off %", "reach %", "reward %")
    for column in (*(DIALS[name] for name in dials), *numbers):
        table.add_column(column, justify="right")
    for cell in rows:
        row = entries(cell, [], dials)
        values = (str(row[key]) for key in ("seeds", "share", "avg", "pass", "truncated", "reach", "reward"))
        table.add_row(*(row[key] for key in texts), *row["dials"], *values)
    console.print(table)
    if constant(rows):
        console.print(f"In all trained rows: {constant(rows)}.", style="dim")
    for note in notes(rows):
        console.print(note, style="dim")
