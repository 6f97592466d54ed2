"""Plan a grid and reject what could not run, with and without plan=true, before a launcher writes or submits anything."""

import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rlvr_sweeps import versions
from rlvr_sweeps.assets import locations, model_folder, problems, procedural
from rlvr_sweeps.config.compose import Point
from rlvr_sweeps.config.settings import trackers_of
from rlvr_sweeps.config.verifiers import refuse_unusable, verifier_of
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.planning import estimates
from rlvr_sweeps.planning.host_memory import HostLimit
from rlvr_sweeps.planning.plan import Planned, make_plan, show
from rlvr_sweeps.runs.directory import Live


def preflight(
    points: Sequence[Point],
    console: Console,
    active: Live | None,
    with_estimates: bool,
    host_limit: HostLimit | None = None,
) -> list[Planned]:
    """Return the plan of a grid and print it, with estimates of memory and time where `with_estimates`.

    `active` holds the user's active Slurm jobs, `host_limit` returns the host memory of a stage's job. Raises Refused where the
    runs to do need a missing model or problem file, a task of reasoning-gym that cannot work or whose training and test sets
    have common questions, a verifier that cannot be used, a model folder that cannot be trained, package versions that are no
    known set, a tracker whose package is missing, or more memory than their GPU or their job has.
    Checks of the machine or the cluster that runs the stages belong to the launchers.
    """
    plan = make_plan(points, retry=any(point.cfg["retry"] for point in points), live=active)
    cfgs: list[Mapping[str, Any]] = [planned.cfg for planned in plan if planned.to_run]
    locations.refuse_missing(cfgs)
    procedural.refuse_unfit(cfgs)
    for cfg in cfgs:
        if cfg["plan"]:
            locations.refuse_unconvertible(cfg)
        else:
            locations.convert_gguf(cfg)
    model_folder.refuse_unfit(cfgs)
    if cfgs:
        versions.refuse_unknown(cfgs[0])
    refuse_missing_trackers(cfgs)
    refuse_unusable_verifiers(cfgs)
    show(plan, console)
    if with_estimates:
        estimates.show(plan, console)
    for warning in sorted({text for cfg in cfgs if (text := model_folder.thinking_warning(cfg))}):
        console.print(f"[yellow]{warning}[/yellow]", highlight=False, soft_wrap=True)
    for sentence in sorted({text for cfg in cfgs if (text := procedural.training_set_sentence(cfg["data"]))}):
        console.print(sentence, highlight=False, soft_wrap=True)
    estimates.refuse_unfit(plan, host_limit)
    return plan


def refuse_unusable_verifiers(cfgs: Sequence[Mapping[str, Any]]) -> None:
    """Raise Refused where a reward function cannot be loaded, or reads a column that problems of this machine lack."""
    checked = set()
    for cfg in cfgs:
        resolved = dict(cfg)
        if verifier_of(resolved).is_math:
            continue
        for source in (cfg["data"], *cfg["benchmark"].values()):
            key = json.dumps([cfg["verifier"], source], sort_keys=True)
            if key not in checked and problems.is_on_this_machine(source):
                checked.add(key)
                first = problems.load_problems(source)[:1]
                refuse_unusable(resolved, {**first[0].columns, "prompt": []} if first else {})


def refuse_missing_trackers(cfgs: Sequence[Mapping[str, Any]]) -> None:
    """Raise Refused where the package of a tracker is not installed."""
    for name in dict.fromkeys(name for cfg in cfgs for name in trackers_of(dict(cfg))):
        try:
            importlib.metadata.version(name)  # not find_spec, for which a folder of that name would be a package
        except importlib.metadata.PackageNotFoundError:
            source = name if name == "wandb" else f"'.[{name}]'"
            raise Refused(
                f"tracking={name} needs the package {name}, which is not installed. Install it: pip install {source}."
            ) from None


def refuse_unwritable(folders: set[str]) -> None:
    """Raise Refused where a runs folder cannot be created or written; only a launch needs this, a plan writes nothing."""
    for folder in sorted(folders):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            probe = Path(folder) / f".writable.{os.getpid()}"
            try:
                probe.write_bytes(bytes(4096))
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise Refused(
                f"runs_dir={folder} cannot be written ({error.strerror}). Use a folder that can: runs_dir=/path/to/runs."
            ) from error
