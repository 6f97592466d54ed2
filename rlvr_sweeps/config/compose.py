"""From override strings to resolved configurations: the one wrapper around Hydra's internals.

Hydra reads and merges every YAML file again for each point of a grid. Here the files are merged once per choice of groups;
a point's plain values are then applied by Hydra's own code to a copy.
"""

import copy
import difflib
import multiprocessing
import os
import pickle
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rlvr_sweeps.config import checks, schema
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.paths import conf_dir

CONFIG_NAME = "config"
FORK_THRESHOLD = 100  # points from which on forking pays


@dataclass(frozen=True)
class Point:
    """One point of a grid: what was typed, and what it means."""

    overrides: tuple[str, ...]
    cfg: Resolved


class Composer:
    """Composes points against one configuration directory; keeps what it merged."""

    def __init__(self, loader: ConfigLoaderImpl) -> None:
        self.loader = loader
        _, self.repository = loader._parse_overrides_and_create_caching_repo(CONFIG_NAME, [])
        self.merged: dict[tuple[str, ...], bytes] = {}  # pickled: three times as fast to copy as a DictConfig

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The composed configuration, not resolved, without Hydra's own node; the same as Hydra's own composing gives."""
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
        self.loader._apply_overrides_to_config(values, cfg)
        return cfg

    def point(self, overrides: Sequence[str]) -> Point:
        """A checked point; Refused or Hydra's own error where it cannot work."""
        return resolve(self.compose(overrides), overrides)

    def points(self, grid: Sequence[Sequence[str]]) -> list[Point]:
        """Every point of a grid, in its order; a large one is composed by as many processes as there are cores."""
        if len(grid) < FORK_THRESHOLD:
            return [self.point(overrides) for overrides in grid]
        workers = len(os.sched_getaffinity(0))
        share = -(-len(grid) // workers)  # neighbours share their choices of groups, which each worker merges itself
        with multiprocessing.get_context("fork").Pool(workers, initializer=inherited_composer.append, initargs=(self,)) as pool:
            return pool.map(compose_in_worker, grid, chunksize=share)


inherited_composer: list[Composer] = []  # in a forked worker: what was loaded before the fork


def compose_in_worker(overrides: Sequence[str]) -> Point:
    return inherited_composer[0].point(overrides)


def resolve(cfg: DictConfig, overrides: Sequence[str] = ()) -> Point:
    """Resolve every interpolation and refuse what cannot work. `cfg` has no `hydra` node."""
    checks.refuse_ignored_dials(cfg, overridden_keys(overrides))
    if any(override.startswith("+") for override in overrides):
        refuse_added_keys(cfg)
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    except MissingMandatoryValue as error:
        raise Refused(f"A value is missing and has no default: {error}") from error
    except OmegaConfBaseException as error:
        raise Refused(f"A value cannot be worked out: {error}") from error
    assert isinstance(container, dict)
    resolved: Resolved = {str(key): value for key, value in container.items()}
    checks.refuse(resolved)
    return Point(tuple(overrides), resolved)


@cache
def parse_override(override: str) -> Override:
    """Hydra's reading of an override; points of a grid share most of theirs."""
    (read,) = OverridesParser.create().parse_overrides([override])
    return read


def overridden_keys(overrides: Sequence[str]) -> Collection[str]:
    return {str(parse_override(override).key_or_group) for override in overrides}


def refuse_unknown_settings(arguments: Sequence[str]) -> None:
    """Raise Refused, with the nearest known name, for a setting no configuration has; `arguments` as typed after launch.py.

    Hydra's own advice, to add the misspelt name with a +, would make it a setting that nobody reads.
    """
    known = {str(key) for key in OmegaConf.structured(schema.Config)}
    for key in overridden_keys([argument for argument in arguments if "=" in argument and not argument.startswith("-")]):
        head = key.partition("@")[0].split("/")[0].split(".")[0]
        if head not in known and head not in ("hydra", "site"):
            near = difflib.get_close_matches(head, known, n=3)
            meant = f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(sorted(known))}."
            raise Refused(f"There is no setting {key!r}. {meant}")


def refuse_added_keys(cfg: DictConfig) -> None:
    """Raise Refused for keys that + brought into a part of the configuration whose keys the schema fixes."""
    try:
        OmegaConf.merge(OmegaConf.structured(schema.Config), OmegaConf.to_container(cfg, resolve=False))
    except OmegaConfBaseException as error:
        raise Refused(
            f"The schema has no such setting: {str(error).splitlines()[0]}. See rlvr_sweeps/config/schema.py."
        ) from None


def offline_composer(directory: Path | None = None) -> Composer:
    """A composer outside of launch.py: for tables, status and tests."""
    schema.register()
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    initialize_config_dir(version_base="1.3", config_dir=str(directory or conf_dir()))
    loader: Any = GlobalHydra.instance().config_loader()
    return Composer(loader)


def point_of(cfg: DictConfig) -> Point:
    """The point of a configuration that Hydra composed: the same, with the same id, as `compose.Composer` makes it."""
    task = copy.deepcopy(cfg)  # a masked copy would lose the types, and with them α = 16.0
    OmegaConf.set_struct(task, False)
    task.pop("hydra", None)
    OmegaConf.set_struct(task, True)
    return resolve(task, overrides_of_this_job())


def overrides_of_this_job() -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
