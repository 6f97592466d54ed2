"""A launch on Slurm: plan, submit what is missing, say what to type next; with wait=true, watch until all has ended."""

import copy
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from rlvr_sweeps.config.compose import Point, point_of
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json
from rlvr_sweeps.launching.progress import ProgressDisplay
from rlvr_sweeps.launching.slurm import queue
from rlvr_sweeps.launching.slurm.manage import save_sbatch_options
from rlvr_sweeps.launching.slurm.submit import WRITER_THREADS, Submission, remaining_jobs, resources, submit
from rlvr_sweeps.planning.plan import Planned
from rlvr_sweeps.planning.preflight import preflight, refuse_unwritable
from rlvr_sweeps.runs.directory import Live, Run, State, all_runs
from rlvr_sweeps.runs.launches import record_launch, submission_lock


def launch(cfg: DictConfig) -> None:
    """One run, as the task of launch.py without -m."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    params = OmegaConf.to_container(hydra.launcher, resolve=True)
    assert isinstance(params, dict)
    point = point_of(cfg)
    folder = Path(str(hydra.sweep.dir)).absolute()
    with record_launch(folder, [point]):
        execute([point], {str(key): value for key, value in params.items() if key != "_target_"}, folder)


def execute(points: Sequence[Point], params: Mapping[str, Any], folder: Path, console: Console | None = None) -> list[Planned]:
    """Plan, submit, and return; raises Refused where Slurm refuses, or, after waiting, where a run failed."""
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    runs_dirs = {point.cfg["runs_dir"] for point in points}
    only_plan = any(point.cfg["plan"] for point in points)
    if only_plan:
        return prepare(points, params, folder, queue.active_jobs_if_reachable(), console)
    queue.active_jobs()  # raises Refused where there is no Slurm, before anything is written
    refuse_unwritable(runs_dirs)
    with submission_lock(Path(min(runs_dirs))):
        plan = prepare(points, params, folder, queue.active_jobs(), console)
        todo = [planned for planned in plan if planned.to_run]
        if todo:
            with ThreadPoolExecutor(WRITER_THREADS) as pool:
                list(pool.map(lambda planned: planned.run.prepare(planned.cfg), todo))
            save_sbatch_options(folder, params)
            after = release_canary(todo, params, folder, console) if any(point.cfg["canary"] for point in points) else None
            say(submit(todo, params, folder, after), console)
    console.print(f"\nwhere they stand:  rlvr status {min(runs_dirs)} --watch", highlight=False, soft_wrap=True)
    console.print(f"what a run says:   rlvr logs RUN --runs-dir {min(runs_dirs)}", highlight=False, soft_wrap=True)
    if any(point.cfg["wait"] for point in points):
        wait(plan, float(params.get("poll_s") or 5.0), console)
    return plan


def prepare(
    points: Sequence[Point], params: Mapping[str, Any], folder: Path, live: Live | None, console: Console
) -> list[Planned]:
    """Return the plan of a grid and print it with its cost; raise Refused for runs that could not work.

    `live` holds the active jobs; without it (no Slurm answers) the limits of partitions are not checked.
    """
    plan = preflight(points, console, live, with_estimates=True)
    show_cost(plan, console)
    show_departed(plan, live or {}, console)
    todo = [planned for planned in plan if planned.to_run]
    if todo and live is not None:
        admit(todo, params, folder, console)
    return plan


def release_canary(todo: Sequence[Planned], params: Mapping[str, Any], folder: Path, console: Console) -> str | None:
    """Submit two steps and one benchmark of the plan's first run; returns the job on whose success the others wait.

    It is a run of its own, in runs_dir/.canary; one that has sung before is not asked again.
    """
    cfg = copy.deepcopy(todo[0].cfg)
    cfg |= {"steps": min(2, cfg["steps"]), "runs_dir": str(Path(cfg["runs_dir"]) / ".canary")}
    cfg["benchmark"] = {name: source | {"k": 1} for name, source in list(cfg["benchmark"].items())[:1]}
    run = Run.of(cfg)
    if run.state(cfg) == "done":
        console.print(f"the canary {run.name} has finished before", highlight=False)
        return None
    run.prepare(cfg)
    (*_, last) = submit([Planned(run, cfg, "new", True, 1)], params, folder, report=False).jobs
    console.print(f"canary: job {last}, {cfg['steps']} steps of {todo[0].run.name}; the others wait for it", highlight=False)
    return last


def gpu_hours(cfg: Resolved) -> float:
    """The most a run can use: its GPUs for the whole time limit of its jobs. A run that is requeued may use more."""
    stages = ["train", "evaluate"] if is_trained(cfg) else ["evaluate"]
    asked = [resources(cfg, stage) for stage in stages]
    return sum(one.get("gpus_per_node", 0) * one.get("nodes", 1) * one["timeout_min"] / 60 for one in asked)


def show_cost(plan: Sequence[Planned], console: Console) -> None:
    """The resources of what is to be submitted, and the most it can cost."""
    todo = [planned for planned in plan if planned.to_run]
    shapes: dict[str, int] = {}
    for planned in todo:
        one = resources(planned.cfg, "train" if is_trained(planned.cfg) else "evaluate")
        nodes, gpus = one.get("nodes", 1), one.get("gpus_per_node", 0)
        words = f"{nodes} node{'s' * (nodes > 1)} × {gpus} GPU{'s' * (gpus != 1)}, {one['timeout_min'] / 60:g} h at most"
        shapes[words] = shapes.get(words, 0) + 1
    for words, count in shapes.items():
        console.print(f"  {count} × {words}", highlight=False)
    if todo:
        most = sum(gpu_hours(planned.cfg) for planned in todo)
        console.print(f"  at most {most:,.0f} GPU-hours in all before a run is requeued", highlight=False)


def show_departed(plan: Sequence[Planned], live: Live, console: Console) -> None:
    """Runs of the same sweep (folder and label) that Slurm still has and this grid no longer asks for: listed, not touched."""
    asked, labels = {planned.run.name for planned in plan}, {planned.cfg["sweep"] for planned in plan}
    for folder in sorted({Path(planned.cfg["runs_dir"]).absolute() for planned in plan}):
        others = [run for run in all_runs(folder) if run.name not in asked]
        at_work = [run for run in others if any(job in live for job in run.jobs().values())]
        left = [run.name for run in at_work if (read_json(run.parsed_path) or {"config": {}})["config"].get("sweep") in labels]
        if left:
            console.print(
                f"[yellow]Still in the queue, and no longer in this sweep's grid (they go on). To stop them: rlvr cancel "
                f"{' '.join(left)} --runs-dir {folder}[/yellow]",
                soft_wrap=True,
            )


def say(done: Submission, console: Console) -> None:
    if done.jobs:
        console.print(f"submitted {done.runs} runs as jobs {', '.join(done.jobs)}", highlight=False, soft_wrap=True)
    if done.left:
        console.print(
            f"[yellow]{len(done.left)} runs are not submitted yet. Slurm takes no more now ({done.why_left}): the same command "
            "again, when the queue has room.[/yellow]",
            soft_wrap=True,
        )
    elif done.why_left:
        console.print(f"[yellow]{done.why_left}[/yellow]", soft_wrap=True)


def wait(plan: Sequence[Planned], poll_s: float, console: Console) -> None:
    """Until no run of the plan is queued or at work; Refused where one did not get done."""
    states: dict[str, State] = {}
    with ProgressDisplay([(planned.run, planned.cfg) for planned in plan], console) as shown:
        while True:
            try:
                live = queue.active_jobs()
            except Refused as refusal:  # the controller may be away for a while; the runs go on without it
                console.print(f"[yellow]{refusal}[/yellow]", soft_wrap=True)
                time.sleep(poll_s)
                continue
            before, states = states, {planned.run.name: planned.run.state(planned.cfg, live) for planned in plan}
            for planned in plan:
                if states[planned.run.name] != before.get(planned.run.name):
                    shown.moved(planned.run, states[planned.run.name])
            if not {"queued", "running"} & set(states.values()):
                break
            time.sleep(poll_s)
    bad = [planned for planned in plan if states[planned.run.name] != "done"]
    if bad:
        errors = [f"{one.run.name}: {error_of(one.run, states[one.run.name])}" for one in bad]
        raise Refused(f"{len(bad)} of {len(plan)} runs are not done.\n" + "\n".join(errors))


def error_of(run: Run, state: str) -> str:
    return str((read_json(run.failure_path) or {}).get("error", state))


NEVER_SHARED = ("tmpfs", "ramfs", "overlay", "squashfs")
OF_ONE_MACHINE = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs")  # seen elsewhere only where they are exported


def admit(todo: Sequence[Planned], params: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Raise Refused for jobs that no partition ends, and for folders that its nodes do not see; warn where that is likely."""
    there = queue.partitions()
    default = next((name for name, partition in there.items() if partition.is_default), "")
    elsewhere = False
    for planned in todo:
        for stage, asked in remaining_jobs(planned):
            names = str(asked.get("partition") or params.get("partition") or default).split(",")
            known = [there[name] for name in names if name in there]  # of an unknown one sbatch says so
            elsewhere |= any(partition.is_elsewhere for partition in known)
            longest = max((partition.limit_min for partition in known), default=float("inf"))
            if asked["timeout_min"] > longest:
                raise Refused(
                    f"cluster.{stage}.timeout_min={asked['timeout_min']}, but partition {' or '.join(names)} ends jobs after "
                    f"{longest:g} minutes: Slurm would let it wait for ever. Use cluster.{stage}.timeout_min={longest:g}; what "
                    "takes longer is requeued and goes on."
                )
    if elsewhere:
        for place, setting in ((Path(todo[0].cfg["runs_dir"]).absolute(), "runs_dir"), (folder, "hydra.sweep.dir")):
            kind = filesystem(place)
            if kind in NEVER_SHARED:
                raise Refused(
                    f"{setting}={place} is on {kind}, which only this machine sees, and the partition's nodes are others. "
                    f"Give a folder that login and compute nodes share: {setting}=/shared/…"
                )
            if kind in OF_ONE_MACHINE:
                console.print(
                    f"[yellow]{place} is on a disk of this machine ({kind}): nodes see it only if it is exported to them. "
                    "`rlvr doctor --job` looks.[/yellow]",
                    soft_wrap=True,
                )


def filesystem(place: Path) -> str:
    """The type of the file system that holds a path, by the kernel's table of mounts."""
    mounts = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    by_point = {Path(fields[4]): fields[fields.index("-") + 1] for fields in mounts}
    return next(by_point[parent] for parent in [place.resolve(), *place.resolve().parents] if parent in by_point)
