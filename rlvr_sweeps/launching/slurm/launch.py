"""Launch on Slurm: plan the grid, reject jobs that could never run, submit the missing runs, print what to type next.

With wait=true the launch shows the runs' progress until none is queued or running; with canary=true a short run goes first.
"""

import copy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from rlvr_sweeps.config.compose import Point, point_of
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import gpu_count, is_trained
from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.launching.progress import ProgressDisplay
from rlvr_sweeps.launching.slurm import next_round, queue, records
from rlvr_sweeps.launching.slurm.manage import has_active_job, save_sbatch_options, sweep_of
from rlvr_sweeps.launching.slurm.options import gres_gpus, host_gib, resources, with_environment
from rlvr_sweeps.launching.slurm.submit import WRITER_THREADS, Submission, remaining_jobs, submit
from rlvr_sweeps.planning.notice import notice_s
from rlvr_sweeps.planning.plan import Planned
from rlvr_sweeps.planning.preflight import preflight, refuse_unwritable
from rlvr_sweeps.runs.directory import Live, NoAnswer, Run, State, all_runs
from rlvr_sweeps.runs.launches import CANARY, record_launch, submission_lock
from rlvr_sweeps.runs.reading import failed_canary, status_of

# Types of file systems that other machines never see, and those that they see only where they are exported.
UNSHARED_FILESYSTEMS = ("tmpfs", "ramfs", "overlay", "squashfs")
DISK_FILESYSTEMS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs")


def launch(cfg: DictConfig) -> None:
    """Launch one composed configuration: the task of launch.py without -m."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    params = OmegaConf.to_container(hydra.launcher, resolve=True)
    assert isinstance(params, dict)
    point = point_of(cfg)
    folder = Path(str(hydra.sweep.dir)).absolute()
    with record_launch(folder, [point]):
        execute([point], {str(key): value for key, value in params.items() if key != "_target_"}, folder)


def execute(
    points: Sequence[Point],
    params: Mapping[str, Any],
    folder: Path,
    console: Console | None = None,
    in_rounds: bool = False,
) -> list[Planned]:
    """Print the plan of a grid, submit the runs to do, and return the plan; with plan=true, submit nothing.

    `params` is hydra.launcher, `folder` the launch's folder; `in_rounds`: further rounds follow (budget=, lr=auto), which
    without wait=true a last job launches. Raises Refused where a run could not work, where Slurm rejects it, and, with
    wait=true, where it does not end as done.
    """
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    runs_dirs = {point.cfg["runs_dir"] for point in points}
    params, from_environment = with_environment(params)
    if from_environment:
        console.print(f"options of sbatch from the environment: {', '.join(from_environment)}", highlight=False, soft_wrap=True)
    only_plan = any(point.cfg["plan"] for point in points)
    if only_plan:
        return prepare(points, params, folder, queue.active_jobs_if_reachable(), console)
    queue.active_jobs()  # raises Refused where there is no Slurm, before anything is written
    refuse_unwritable(runs_dirs)
    runs_dir = Path(min(runs_dirs))

    def notify(sentence: str) -> None:
        console.print(f"[yellow]{escape(sentence)}[/yellow]", highlight=False, soft_wrap=True)

    with submission_lock(runs_dir):
        for submitted_to in (runs_dir, runs_dir / CANARY):
            for sentence in records.recover(submitted_to, queue.active_jobs()):
                notify(sentence)
        plan = prepare(points, params, folder, queue.active_jobs(), console)
        todo = [planned for planned in plan if planned.to_run]
        unwritable = prepare_directories(todo)
        todo = [planned for planned in todo if planned.run.name not in unwritable]
        if next_round.is_last_job():
            todo = never_submitted(todo, notify)
        submission = Submission()
        if todo:
            save_sbatch_options(folder, params)
            canary = submit_canary(todo, params, folder, console) if any(point.cfg["canary"] for point in points) else None
            submission = submit(todo, params, folder, after=canary, notify=notify)
            show_submission(submission, console)
            if submission.refused:
                names = ", ".join(run.name for run in submission.refused[:3]) + " …" * (len(submission.refused) > 3)
                raise Refused(f"Slurm refuses {len(submission.refused)} of {len(todo)} runs ({names}): {submission.refusal}")
        if unwritable:
            errors = "; ".join(f"{name}: {error}" for name, error in sorted(unwritable.items()))
            raise Refused(f"The directories of {len(unwritable)} runs cannot be written, and these were left out: {errors}")
        waits = any(point.cfg["wait"] for point in points)
        last = in_rounds and not waits and next_round.submit_last_job(plan, params, folder, bool(submission.runs), notify)
        if last:
            console.print(last, highlight=False, soft_wrap=True)
    console.print(f"\nthe runs' states:  rlvr status {min(runs_dirs)} --watch", highlight=False, soft_wrap=True)
    console.print(f"a run's output:    rlvr logs RUN --runs-dir {min(runs_dirs)}", highlight=False, soft_wrap=True)
    if waits:
        wait(plan, float(params.get("poll_s") or 5.0), console)
    return plan


def never_submitted(todo: Sequence[Planned], notify: Callable[[str], object]) -> list[Planned]:
    """Return the new runs of a last job's launch; call `notify` with the others, which a person must submit again."""
    if others := [planned.run.name for planned in todo if planned.state != "new"]:
        notify(f"Not submitted again without a person, who types the same command: {', '.join(others)}.")
    return [planned for planned in todo if planned.state == "new"]


def prepare_directories(todo: Sequence[Planned]) -> dict[str, str]:
    """Make the runs' directories, many at the same time; return the error of each that cannot be written, by the run's name."""

    def error_of_directory(planned: Planned) -> str | None:
        try:
            planned.run.prepare(planned.cfg)
        except OSError as error:
            return f"{error.filename or planned.run.path}: {error.strerror}"
        return None

    with ThreadPoolExecutor(WRITER_THREADS) as pool:
        errors = pool.map(error_of_directory, todo)
        return {planned.run.name: error for planned, error in zip(todo, errors, strict=True) if error}


def prepare(
    points: Sequence[Point], params: Mapping[str, Any], folder: Path, active: Live | None, console: Console
) -> list[Planned]:
    """Return the plan of a grid and print it with its cost; raise Refused for runs that could not work.

    `active` holds the user's active jobs; where it is None or NoAnswer (no Slurm answers), partitions are not checked.
    """

    def host_limit(cfg: Resolved, stage: str) -> float | None:
        return host_gib(params, resources(cfg, stage))

    plan = preflight(points, console, active, with_estimates=True, host_limit=host_limit)
    show_cost(plan, console)
    show_removed_runs(plan, active or {}, console)
    todo = [planned for planned in plan if planned.to_run]
    if isinstance(active, NoAnswer):
        console.print(f"[yellow]Slurm does not answer: {escape(active.reason)}[/yellow]", highlight=False, soft_wrap=True)
    elif todo and active is not None:
        refuse_impossible_jobs(todo, params, folder, console)
    return plan


def submit_canary(todo: Sequence[Planned], params: Mapping[str, Any], folder: Path, console: Console) -> str | None:
    """Submit two steps and one benchmark of the plan's first run; returns the job that must succeed before the others start.

    The canary is a run of its own, in runs_dir/.canary. A canary that already succeeded is not run again: returns None.
    """
    cfg = copy.deepcopy(todo[0].cfg)
    cfg |= {"steps": min(2, cfg["steps"]), "runs_dir": str(Path(cfg["runs_dir"]) / CANARY)}
    cfg["benchmark"] = {name: source | {"k": 1} for name, source in list(cfg["benchmark"].items())[:1]}
    run = Run.of(cfg)
    active = queue.active_jobs()
    state = run.state(cfg, active)
    if state == "done":
        console.print(f"the canary {run.name} already succeeded", highlight=False)
        return None
    if in_queue := [job for job in run.jobs().values() if job in active]:
        console.print(f"canary: job {in_queue[-1]} of an earlier launch, {state}; the others wait for it", highlight=False)
        return in_queue[-1]
    if failure := run.failure():
        console.print(f"[yellow]the canary failed before: {escape(failure['error'])}[/yellow]", highlight=False, soft_wrap=True)
    run.prepare(cfg)
    (*_, last) = submit([Planned(run, cfg, "new", True, 1)], params, folder, report=False).jobs
    console.print(f"canary: job {last}, {cfg['steps']} steps of {todo[0].run.name}; the others wait for it", highlight=False)
    return last


def max_gpu_hours(cfg: Resolved) -> float:
    """Return the GPU-hours of a run whose jobs all take their whole time limit; a requeued run may take more."""
    stages = ["train", "evaluate"] if is_trained(cfg) else ["evaluate"]
    jobs = [resources(cfg, stage) for stage in stages]
    return sum(gpu_count(job.get("gpus_per_node", 0)) * job.get("nodes", 1) * job["timeout_min"] / 60 for job in jobs)


def show_cost(plan: Sequence[Planned], console: Console) -> None:
    """Print the resources of the runs to submit, and the most GPU-hours that they can take."""
    todo = [planned for planned in plan if planned.to_run]
    counts: dict[str, int] = {}
    for planned in todo:
        job = resources(planned.cfg, "train" if is_trained(planned.cfg) else "evaluate")
        nodes, gpus = job.get("nodes", 1), gpu_count(job.get("gpus_per_node", 0))
        text = f"{nodes} node{'s' * (nodes > 1)} × {gpus} GPU{'s' * (gpus != 1)}, {job['timeout_min'] / 60:g} h at most"
        counts[text] = counts.get(text, 0) + 1
    for text, count in counts.items():
        console.print(f"  {count} × {text}", highlight=False)
    if most := sum(max_gpu_hours(planned.cfg) for planned in todo):
        console.print(f"  the time limits allow {most:,.0f} GPU-hours in all, unless runs are requeued", highlight=False)


def show_removed_runs(plan: Sequence[Planned], active: Live, console: Console) -> None:
    """Print the runs of the same folder and sweep label that have active jobs but are not in this grid; leave them alone."""
    planned_names, labels = {planned.run.name for planned in plan}, {planned.cfg["sweep"] for planned in plan}
    for folder in sorted({Path(planned.cfg["runs_dir"]).absolute() for planned in plan}):
        others = [run for run in all_runs(folder) if run.name not in planned_names]
        removed = [run.name for run in others if has_active_job(run, active) and sweep_of(run) in labels]
        if removed:
            console.print(
                f"[yellow]Still in the queue, and no longer in this sweep's grid (they go on). To stop them: rlvr cancel "
                f"{' '.join(removed)} --runs-dir {folder}[/yellow]",
                soft_wrap=True,
            )


def show_submission(submission: Submission, console: Console) -> None:
    """Print the submitted jobs, and what Slurm did not accept."""
    if submission.jobs:
        console.print(f"submitted {submission.runs} runs as jobs {', '.join(submission.jobs)}", highlight=False, soft_wrap=True)
    if submission.unsubmitted:
        console.print(
            f"[yellow]{len(submission.unsubmitted)} runs are not submitted yet: Slurm accepts no more jobs at present "
            f"({submission.reason}). Run the same command again when the queue is shorter.[/yellow]",
            soft_wrap=True,
        )
    elif submission.reason:
        console.print(f"[yellow]{submission.reason}[/yellow]", soft_wrap=True)


def wait(plan: Sequence[Planned], poll_s: float, console: Console) -> None:
    """Show the runs until none is queued or running; raises Refused where one is not done then."""
    states: dict[str, State] = {}
    with ProgressDisplay([(planned.run, planned.cfg) for planned in plan], console) as display:
        while True:
            try:
                active = queue.active_jobs()
            except Refused as refusal:  # the controller may be down for a while; the runs continue without it
                console.print(f"[yellow]{refusal}[/yellow]", soft_wrap=True)
                time.sleep(poll_s)
                continue
            before, states = states, {planned.run.name: state_of(planned, active) for planned in plan}
            for planned in plan:
                if states[planned.run.name] != before.get(planned.run.name):
                    display.run_changed(planned.run, states[planned.run.name])
            if not {"queued", "running"} & set(states.values()):
                break
            time.sleep(poll_s)
    unfinished = [planned.run for planned in plan if states[planned.run.name] != "done"]
    if unfinished:
        errors = [f"{run.name}: {error_of(run, states[run.name])}" for run in unfinished]
        canary = failed_canary(plan[0].run.path.parent) if any(planned.cfg["canary"] for planned in plan) else None
        raise Refused(f"{len(unfinished)} of {len(plan)} runs are not done.\n" + "\n".join([*filter(None, [canary]), *errors]))


def state_of(planned: Planned, active: Live) -> State:
    """Return the state of a run of the plan; unreadable where one of its files is damaged."""
    try:
        return planned.run.state(planned.cfg, active)
    except Damaged:
        return "unreadable"


def error_of(run: Run, state: str) -> str:
    """Return the error in a run's failure.json, or the damaged file of an unreadable run, else its state."""
    if state == "unreadable":
        return status_of(run).error
    return str((run.failure() or {}).get("error", state))


def refuse_impossible_jobs(todo: Sequence[Planned], params: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Raise Refused for jobs that Slurm would accept but could never run: longer than their partitions' limit, or with folders
    that the nodes cannot see. Print a warning for folders that they may not see.
    """
    notice_s([planned.cfg for planned in todo if is_trained(planned.cfg)], params)
    known = queue.partitions()
    default = next((name for name, partition in known.items() if partition.is_default), "")
    on_other_hosts = False
    for planned in todo:
        for stage, needed in remaining_jobs(planned):
            gpus, gres = gpu_count(needed.get("gpus_per_node", 0)), gres_gpus(params)
            if gpus and gres not in (None, gpus):
                raise Refused(
                    f"hydra.launcher.gres={params['gres']} requests {gres} GPUs on each node, but the {stage} job of "
                    f"{planned.run.name} starts {gpus} processes there, one per GPU. Set cluster.{stage}.gpus_per_node "
                    "instead, with Slurm's type of GPU if needed (h100:2), or correct gres."
                )
            names = str(needed.get("partition") or params.get("partition") or default).split(",")
            partitions = [known[name] for name in names if name in known]  # sbatch rejects an unknown name
            on_other_hosts |= any(partition.has_other_hosts for partition in partitions)
            longest = max((partition.limit_min for partition in partitions), default=float("inf"))
            if needed["timeout_min"] > longest:
                raise Refused(
                    f"cluster.{stage}.timeout_min={needed['timeout_min']}, but partition {' or '.join(names)} ends jobs after "
                    f"{longest:g} minutes: the job would wait for ever. Use cluster.{stage}.timeout_min={longest:g}; a run "
                    "that takes longer is requeued and resumes."
                )
    if on_other_hosts:
        for path, setting in ((Path(todo[0].cfg["runs_dir"]).absolute(), "runs_dir"), (folder, "hydra.sweep.dir")):
            filesystem = filesystem_type(path)
            if filesystem in UNSHARED_FILESYSTEMS:
                raise Refused(
                    f"{setting}={path} is on {filesystem}, which only this machine sees, and the partition has other machines. "
                    f"Use a folder that login and compute nodes share: {setting}=/shared/…"
                )
            if filesystem in DISK_FILESYSTEMS:
                console.print(
                    f"[yellow]{path} is on a disk of this machine ({filesystem}): nodes see it only if it is exported to them. "
                    "To check: rlvr doctor --job.[/yellow]",
                    soft_wrap=True,
                )


def filesystem_type(path: Path) -> str:
    """Return the type of the file system that holds a path, from the kernel's table of mounts."""
    mounts = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    by_mount_point = {Path(fields[4]): fields[fields.index("-") + 1] for fields in mounts}
    return next(by_mount_point[parent] for parent in [path.resolve(), *path.resolve().parents] if parent in by_mount_point)
