"""Compose override strings into resolved configurations.

Hydra reads and merges every YAML file again for each point of a grid. Here the files are merged once per combination of group
choices; Hydra's own code then applies a point's other values to a copy.
"""

import copy
import difflib
import multiprocessing
import os
import pickle
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlvr_sweeps import patches
from rlvr_sweeps.config import checks, schema, verifiers
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.paths import conf_dir

CONFIG_NAME = "config"
FORK_THRESHOLD = 100  # grids of at least so many points are composed by several processes


@dataclass(frozen=True)
class Point:
    """One point of a grid: its overrides and the resolved configuration."""

    overrides: tuple[str, ...]
    cfg: Resolved


class Composer:
    """Compose points against one configuration directory; the merged files of each combination of groups are cached."""

    def __init__(self, loader: ConfigLoader) -> None:
        patches.reuse_interpolation_trees()
        self.loader = loader
        self.repository = patches.hydra_repository(loader, CONFIG_NAME)
        self.merged: dict[tuple[str, ...], bytes] = {}  # pickled: three times as fast to load as a DictConfig is to copy

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return the composed configuration, unresolved and without the `hydra` node; equal to what hydra.compose returns."""
        choices: list[Any] = []
        values: list[Any] = []
        for override in map(parse_override, overrides):
            of_hydra = override.is_hydra_override()
            (choices if of_hydra or self.repository.group_exists(override.key_or_group) else values).append(override)
        key = tuple(str(override.input_line) for override in choices)
        if key not in self.merged:
            merged = self.loader.load_configuration(
                CONFIG_NAME, list(key), RunMode.RUN, from_shell=False, validate_sweep_overrides=False
            )
            OmegaConf.set_struct(merged, False)
            del merged["hydra"]
            OmegaConf.set_struct(merged, True)
            self.merged[key] = pickle.dumps(merged)
        cfg: DictConfig = pickle.loads(self.merged[key])
        patches.apply_overrides(self.loader, values, cfg)
        return cfg

    def point(self, overrides: Sequence[str]) -> Point:
        """Return the resolved and checked point; raise Refused, or Hydra's own error, where the overrides cannot work."""
        return resolve(self.compose(overrides), overrides)

    def points(self, grid: Sequence[Sequence[str]]) -> list[Point]:
        """Return every point of a grid in order; a large grid is composed by as many processes as there are cores."""
        if len(grid) < FORK_THRESHOLD:
            return [self.point(overrides) for overrides in grid]
        workers = len(os.sched_getaffinity(0))
        share = -(-len(grid) // workers)  # consecutive points mostly share their groups, which each worker merges once
        with multiprocessing.get_context("fork").Pool(workers, initializer=inherited_composer.append, initargs=(self,)) as pool:
            return pool.map(compose_in_worker, grid, chunksize=share)


inherited_composer: list[Composer] = []  # in a forked worker: the parent's composer


def compose_in_worker(overrides: Sequence[str]) -> Point:
    """Compose a point in a forked worker."""
    return inherited_composer[0].point(overrides)


def resolve(cfg: DictConfig, overrides: Sequence[str] = ()) -> Point:
    """Resolve every interpolation and check the result; `cfg` has no `hydra` node. Raises Refused for what cannot work."""
    checks.refuse_ignored_dials(cfg, overridden_keys(overrides))
    if any(override.startswith("+") for override in overrides):
        refuse_added_keys(cfg)
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        if missing := missing_settings(OmegaConf.to_container(cfg)) or unset_source(cfg, error.full_key):
            settings = " ".join(f"{key}=VALUE" for key in missing)
            raise Refused(f"These settings have no default and are not set: {', '.join(missing)}. Add {settings}.") from None
        raise Refused(f"A value cannot be resolved: {str(error).splitlines()[0]}.") from None
    assert isinstance(container, dict)
    resolved: Resolved = {str(key): value for key, value in container.items()}
    checks.refuse(resolved)
    verifiers.record_sources(resolved)
    return Point(tuple(overrides), resolved)


def missing_settings(node: Any, prefix: str = "") -> list[str]:
    """Return the keys, with dots, of an unresolved container's settings that must be set but are not."""
    if isinstance(node, dict):
        return [key for name, value in node.items() for key in missing_settings(value, f"{prefix}.{name}".lstrip("."))]
    return [prefix] if node == "???" else []


def unset_source(cfg: DictConfig, key: str | None) -> list[str]:
    """Return the setting that `key` copies, such as data.task for ${data.task}, if it is null; else nothing."""
    value = OmegaConf.to_container(cfg)
    for name in (key or "").split("."):
        value = value.get(name) if isinstance(value, dict) else None
    source = re.fullmatch(r"\$\{([\w.]+)\}", str(value))
    return [source[1]] if source and OmegaConf.select(cfg, source[1], default="") is None else []


@cache
def parse_override(override: str) -> Override:
    """Return Hydra's parse of an override; cached, since the points of a grid share most overrides."""
    (result,) = OverridesParser.create().parse_overrides([override])
    return result


def overridden_keys(overrides: Sequence[str]) -> Collection[str]:
    """Return the keys and groups that the overrides set."""
    return {str(parse_override(override).key_or_group) for override in overrides}


def refuse_unknown_settings(arguments: Sequence[str]) -> None:
    """Raise Refused, with the nearest known name, for a setting that does not exist; `arguments` as typed after launch.py.

    Hydra's own message advises to add the misspelt name with a +, which would create a setting that no code reads.
    """
    known = {str(key) for key in OmegaConf.structured(schema.Config)}
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    for override in overrides:
        refuse_unreadable(override)
    for key in overridden_keys(overrides):
        head = key.partition("@")[0].split("/")[0].split(".")[0]
        if head not in known and head not in ("hydra", "site"):
            near = difflib.get_close_matches(head, known, n=3)
            advice = f"Did you mean {' or '.join(near)}?" if near else f"Settings: {', '.join(sorted(known))}."
            raise Refused(f"There is no setting {key!r}. {advice}")


def refuse_unreadable(override: str) -> None:
    """Raise Refused for an override that Hydra's grammar cannot read, such as a path with an unquoted ü."""
    try:
        parse_override(override)
    except HydraException as error:
        key, _, value = override.partition("=")
        raise Refused(
            f"{override} cannot be read ({str(error).splitlines()[0]}). Hydra takes letters beyond ASCII and most signs "
            f"only in quotes, which the shell must leave in: \"{key}='{value}'\"."
        ) from None


def refuse_added_keys(cfg: DictConfig) -> None:
    """Raise Refused for keys that a + override added to a part of the configuration whose keys are fixed by the schema."""
    try:
        OmegaConf.merge(OmegaConf.structured(schema.Config), OmegaConf.to_container(cfg, resolve=False))
    except OmegaConfBaseException as error:
        raise Refused(
            f"The schema has no such setting: {str(error).splitlines()[0]}. Every setting: rlvr_sweeps/config/schema.py."
        ) from None


def offline_composer(directory: Path | None = None) -> Composer:
    """Return a composer for use outside of launch.py: tables, reports, tests. `directory`: conf/ by default."""
    schema.register()
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    initialize_config_dir(version_base="1.3", config_dir=str(directory or conf_dir()))
    return Composer(GlobalHydra.instance().config_loader())


def point_of(cfg: DictConfig) -> Point:
    """Return the point of a configuration that Hydra composed; equal to the one that Composer.point makes, id included."""
    task = copy.deepcopy(cfg)  # OmegaConf.masked_copy would lose the fields' types, and α would be 16 instead of 16.0
    OmegaConf.set_struct(task, False)
    task.pop("hydra", None)
    OmegaConf.set_struct(task, True)
    return resolve(task, overrides_of_this_job())


def overrides_of_this_job() -> list[str]:
    """Return the overrides of the current Hydra job; empty outside of one."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return []
    texts = OmegaConf.to_container(HydraConfig.get().overrides.task)  # unresolved: an override may contain ${…}
    assert isinstance(texts, list)
    return [str(text) for text in texts]
