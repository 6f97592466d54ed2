"""Compare runs with the settings that the paper states, and list their values where it states none (paper/settings.yaml)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from rlvr_sweeps.config.schema import Resolved, leaves
from rlvr_sweeps.config.settings import averaged_benchmarks, dial_values, is_trained
from rlvr_sweeps.config.sweeps import main_model
from rlvr_sweeps.paths import conf_dir
from rlvr_sweeps.reporting.rows import Cell

ABSENT = object()


@dataclass(frozen=True)
class Deviation:
    """A setting, the paper's value (empty where it states none) and the value of the runs."""

    setting: str
    section: str
    paper: str
    value: str
    rows: tuple[str, ...]  # labels of the rows with this value; empty where all rows with the setting have it


@cache
def settings() -> list[dict[str, Any]]:
    """Return the entries of paper/settings.yaml."""
    stated = OmegaConf.to_container(OmegaConf.load(conf_dir().parent / "paper" / "settings.yaml"))
    assert isinstance(stated, list)
    return stated


def deviations(rows: Sequence[Cell], labels: Sequence[str]) -> list[Deviation]:
    """Return an entry per setting and value that differs from the paper."""
    return [entry for setting in settings() if setting["paper"] is not None for entry in entries_of(setting, rows, labels)]


def choices(rows: Sequence[Cell], labels: Sequence[str]) -> list[Deviation]:
    """Return an entry per setting that the paper does not state and value that the runs have."""
    return [entry for setting in settings() if setting["paper"] is None for entry in entries_of(setting, rows, labels)]


def entries_of(setting: dict[str, Any], rows: Sequence[Cell], labels: Sequence[str]) -> list[Deviation]:
    """Return an entry per value of one setting that is not the paper's, with the rows that have it."""
    labels_by_value: dict[str, list[str]] = {}
    paper_values: dict[str, str] = {}
    count = 0
    for cell, label in zip(rows, labels, strict=True):
        for cfg in configurations(cell):
            value = value_of(cfg, setting["key"])
            if value is ABSENT or cfg["peft"]["name"] in setting.get("except", []):
                continue
            count += 1
            stated = value_for_model(setting["paper"], cfg["model"]["name"])
            if not any(is_equal(value, allowed) for allowed in [stated, *setting.get("also", [])]) or stated is None:
                labels_by_value.setdefault(as_text(value), []).append(label)
                paper_values[as_text(value)] = "" if stated is None else as_text(stated)
    return [
        Deviation(
            setting["what"], setting.get("section", ""), paper_values[value], value,
            () if len(labels_with_value) == count else tuple(dict.fromkeys(labels_with_value)),
        )
        for value, labels_with_value in labels_by_value.items()
    ]  # fmt: skip


def configurations(cell: Cell) -> list[Resolved]:
    """Return one configuration per seed, since the training seed is also a setting."""
    return [cell.cfg | {"seed": summary.get("seed", cell.cfg["seed"])} for summary in cell.summaries]


def value_of(cfg: Resolved, key: str) -> Any:
    """Return a run's value under a key of settings.yaml; ABSENT where its method, objective or model has no such setting."""
    if not is_trained(cfg) and not key.startswith(("model.path", "benchmark", "evaluation.", "peft.name")):
        return ABSENT
    dials = dial_values(cfg)
    if key == "benchmarks":
        return averaged_benchmarks(cfg["benchmark"])
    if key == "alpha/rank":
        return dials["alpha"] / dials["rank"] if dials["alpha"] and dials["rank"] else ABSENT
    if key in dials:
        return ABSENT if dials[key] is None else dials[key]
    value = dict(leaves(cfg)).get(key, ABSENT)
    return ABSENT if value is None and key == "peft.lr_ratio" else value


def value_for_model(stated: Any, model: str) -> Any:
    """Return the paper's value for a model; that of the main model where the paper has no such model."""
    return stated.get(model, stated[main_model()]) if isinstance(stated, dict) else stated


def is_equal(value: Any, stated: Any) -> bool:
    """Return whether two values are equal; lists may differ in order."""
    if isinstance(value, list) and isinstance(stated, list):
        return sorted(value) == sorted(stated)
    return bool(value == stated)


def as_text(value: Any) -> str:
    """Return a value as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
