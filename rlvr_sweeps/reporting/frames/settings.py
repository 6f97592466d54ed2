"""The settings of runs as columns: those of every table of runs, and each further one that differs between the runs."""

import json
from collections.abc import Sequence
from typing import Any

from rlvr_sweeps.config.identity import matches
from rlvr_sweeps.config.schema import Resolved, leaves, schema_defaults
from rlvr_sweeps.config.settings import dial_values, is_trained
from rlvr_sweeps.files import Row
from rlvr_sweeps.reporting.rows import SEEDS

DIALS = ("rank", "alpha", "dropout", "modules", "lr", "batch_size", "steps", "seed")
NAMED = ("model", "peft", "method", "algo", "data", *DIALS)
NOT_COLUMNS = (  # patterns of dotted keys: those with a column in NAMED, and those of the machine and of the launch
    *DIALS, "*.name", "*.title", "*.unavailable", "cluster.*", "tracking.*", "sweep", "runs_dir", "plan", "retry", "wait",
    "canary", "untested_versions", "signal_check",
)  # fmt: skip
OF_EVERY_RUN = (
    "model.*",
    "evaluation.*",
    "benchmark.*",
    "grading",
    "answers.*",
    "verifier.*",
)  # the others matter to trained runs only
ABSENT = object()


def named_settings(cfg: Resolved) -> Row:
    """Return the settings of NAMED; `algo` is `none`, and the others of the training None, where the run trains nothing."""
    trained = is_trained(cfg)
    names = {
        "model": cfg["model"]["name"], "peft": cfg["peft"]["name"], "method": cfg["peft"]["title"],
        "algo": cfg["algo"]["name"] if trained else "none", "data": cfg["data"]["name"] if trained else None,
    }  # fmt: skip
    return names | dial_values(cfg)


def varying_settings(configurations: Sequence[Resolved]) -> list[Row]:
    """Return for each configuration the values of the settings outside NAMED that differ, by dotted key, in sorted order.

    Settings below `model`, `peft`, `algo` and `data` follow from the choice of a name in conf/, and those below `peft` from the
    dials too: they count only where they differ between runs of equal names and dials. A list becomes its JSON text. The value
    is None where a run has no such setting, or does not use it.
    """
    settings = [used_settings(cfg) for cfg in configurations]
    defaults = schema_defaults()
    chosen = []
    for key in sorted({key for values in settings for key in values}):
        if len({repr(values.get(key, ABSENT)) for values in settings}) == 1:  # of most keys: saves the comparison by groups
            continue
        groups: dict[str, set[str]] = {}
        for cfg, values in zip(configurations, settings, strict=True):
            if (value := values.get(key, defaults.get(key, ABSENT) if is_used(key, cfg) else ABSENT)) is not ABSENT:
                groups.setdefault(choice(cfg, key), set()).add(repr(value))
        if any(len(group) > 1 for group in groups.values()):
            chosen.append(key)
    return [
        {key: as_cell(values.get(key, defaults.get(key) if is_used(key, cfg) else None)) for key in chosen}
        for cfg, values in zip(configurations, settings, strict=True)
    ]


def used_settings(cfg: Resolved) -> Row:
    """Return the leaves of a configuration that may become columns and that its run uses, by dotted key."""
    return {key: value for key, value in leaves(cfg) if is_used(key, cfg)}


def is_used(key: str, cfg: Resolved) -> bool:
    """Return whether a setting may become a column and matters to the run: most do not where nothing is trained."""
    if matches(key, NOT_COLUMNS) or (key.startswith("peft.") and key.rpartition(".")[2] in SEEDS):
        return False
    return is_trained(cfg) or matches(key, OF_EVERY_RUN)


def choice(cfg: Resolved, key: str) -> str:
    """Return what a setting may follow from: the name of its group in conf/, and for a method's setting the dials."""
    group = key.partition(".")[0]
    if group not in ("model", "peft", "algo", "data"):
        return ""
    values = [cfg[group]["name"]]
    if group == "peft":
        values += [value for dial, value in dial_values(cfg).items() if dial != "seed"]
    return repr(values)


def as_cell(value: Any) -> Any:
    """Return a value that fits into a column: a list as its JSON text."""
    return json.dumps(value) if isinstance(value, list) else value
