"""Where runs differ from what the paper states (paper/settings.yaml), and what they chose where it is silent."""

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
class Finding:
    """A setting, what the paper says of it (nothing where it is silent), and what runs have."""

    what: str
    section: str
    paper: str
    here: str
    rows: tuple[str, ...]  # labels of the rows that have this; empty for all that have the setting


@cache
def settings() -> list[dict[str, Any]]:
    stated = OmegaConf.to_container(OmegaConf.load(conf_dir().parent / "paper" / "settings.yaml"))
    assert isinstance(stated, list)
    return stated


def deviations(rows: Sequence[Cell], labels: Sequence[str]) -> list[Finding]:
    """What differs from the paper, a finding per setting and value."""
    return [finding for setting in settings() if setting["paper"] is not None for finding in compared(setting, rows, labels)]


def choices(rows: Sequence[Cell], labels: Sequence[str]) -> list[Finding]:
    """What was chosen where the paper says nothing."""
    return [finding for setting in settings() if setting["paper"] is None for finding in compared(setting, rows, labels)]


def compared(setting: dict[str, Any], rows: Sequence[Cell], labels: Sequence[str]) -> list[Finding]:
    """By value that is not the paper's: the rows that have it."""
    having: dict[str, list[str]] = {}
    said: dict[str, str] = {}
    count = 0
    for cell, label in zip(rows, labels, strict=True):
        for cfg in configurations(cell):
            value = value_of(cfg, setting["key"])
            if value is ABSENT or cfg["peft"]["name"] in setting.get("except", []):
                continue
            count += 1
            stated = of_model(setting["paper"], cfg["model"]["name"])
            if not any(same(value, allowed) for allowed in [stated, *setting.get("also", [])]) or stated is None:
                having.setdefault(shown(value), []).append(label)
                said[shown(value)] = "" if stated is None else shown(stated)
    return [
        Finding(
            setting["what"], setting.get("section", ""), said[value], value,
            () if len(where) == count else tuple(dict.fromkeys(where)),
        )
        for value, where in having.items()
    ]  # fmt: skip


def configurations(cell: Cell) -> list[Resolved]:
    """One per seed: the training seed is a setting too."""
    return [cell.cfg | {"seed": summary.get("seed", cell.cfg["seed"])} for summary in cell.summaries]


def value_of(cfg: Resolved, key: str) -> Any:
    """A run's value under a key of settings.yaml; ABSENT where its method, objective or model has no such setting."""
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


def of_model(stated: Any, model: str) -> Any:
    return stated.get(model, stated[main_model()]) if isinstance(stated, dict) else stated


def same(value: Any, stated: Any) -> bool:
    if isinstance(value, list) and isinstance(stated, list):
        return sorted(value) == sorted(stated)
    return bool(value == stated)


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
