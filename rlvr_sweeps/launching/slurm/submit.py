"""Submit the runs of a plan to Slurm as job arrays that run a frozen copy of the code.

Runs that need the same jobs with the same resources share one array per stage, cut at the cluster's limits. Task i of an
evaluation array starts after task i of its training array; after all jobs of a launch, one job writes the report. Each run's
submission.json records its jobs. `snapshot_code` makes the frozen copy: later edits of the checkout do not change queued runs.
"""

import contextlib
import hashlib
import io
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlvr_sweeps import patches
from rlvr_sweeps.assets.locations import WORLDS_FOLDER
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import write_json
from rlvr_sweeps.launching.slurm import queue
from rlvr_sweeps.launching.slurm.supervisor import StageTask
from rlvr_sweeps.paths import ROOT
from rlvr_sweeps.planning.plan import Planned
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.versions import commit

Resources = dict[str, Any]
# Options of hydra.launcher and conf/cluster that submitit names, and those that are no options of sbatch; the others are.
SUBMITIT_NAMES = ("nodes", "gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min")
NOT_SBATCH = ("submitit_folder", "max_array_size", "poll_s", "max_num_timeout", "tasks_per_node", "name", "setup",
              "additional_parameters", "array_parallelism", "signal_delay_s", "stderr_to_stdout",
              "srun_args")  # fmt: skip
REPORT_RESOURCES = {"nodes": 1, "gpus_per_node": 0, "cpus_per_task": 1, "timeout_min": 30}
LIMIT_MESSAGES = ("MaxSubmitJob", "job submit limit", "MaxJobCount")  # in sbatch's error where it accepts no more jobs
WRITER_THREADS = 16  # a shared disk answers an fsync after milliseconds, but answers many at the same time
SNAPSHOT_FOLDERS = ("rlvr_sweeps", "hydra_plugins", "conf", "paper")  # conf and paper: for the job that writes the report
SNAPSHOT_SUFFIXES = (".py", ".j2", ".css", ".js", ".yaml", ".csv")


@dataclass
class Submission:
    """The submitted jobs of a launch, and the runs that Slurm did not accept yet."""

    jobs: list[str] = field(default_factory=list)  # ids of arrays and single jobs, in the order of submission
    runs: int = 0  # submitted
    unsubmitted: list[Run] = field(default_factory=list)
    reason: str = ""  # Slurm's message on unsubmitted runs, or on a missing report job


def submit(
    todo: Sequence[Planned], params: Mapping[str, Any], folder: Path, after: str | None = None, report: bool = True
) -> Submission:
    """Submit runs, as many as the user's limits allow; `after`: a job that must succeed first; `report`: add the report job.

    `params` is hydra.launcher, `folder` the launch's folder. Raises Refused, with Slurm's message, where none is accepted.
    """
    code = snapshot_code(Path(todo[0].cfg["runs_dir"]).absolute() / ".code")
    size = params.get("max_array_size") or queue.config_number("MaxArraySize", 1001)
    submission = Submission()
    groups: dict[str, list[Planned]] = {}
    for planned in todo:
        groups.setdefault(repr(remaining_jobs(planned)), []).append(planned)
    for group in groups.values():
        waiting = list(group)
        while waiting and size:
            chunk = waiting[:size]
            try:
                submission.jobs += submit_chunk(chunk, params, folder, code, after)
            except Refused as refusal:
                if not any(message in str(refusal) for message in LIMIT_MESSAGES):
                    raise
                submission.reason = str(refusal)
                size = len(chunk) // 2  # 0 after a single run is refused: nothing more is submitted
                continue
            submission.runs += len(chunk)
            waiting = waiting[len(chunk) :]
        submission.unsubmitted += [planned.run for planned in waiting]
    if submission.unsubmitted and not submission.jobs and not queue.active_jobs():
        raise Refused(f"{submission.reason} (you have no job in the queue: waiting changes nothing)")
    if submission.jobs and report:
        submission.jobs += submit_report(todo[0].cfg["runs_dir"], params, folder, code, submission)
    return submission


def remaining_jobs(planned: Planned) -> list[tuple[str, Resources]]:
    """Return the jobs that a run still needs, each with its resources; the evaluation's job runs the analysis too."""
    cfg = planned.cfg
    missing = [stage for stage in planned.run.stages(cfg) if not planned.run.is_done(stage, cfg)]
    jobs = dict.fromkeys("evaluate" if stage == "analyse" else stage for stage in missing)
    return [(stage, resources(cfg, stage)) for stage in jobs]


def resources(cfg: Resolved, stage: str) -> Resources:
    """Return the options of conf/cluster for a stage's job, without those that are null."""
    return {key: value for key, value in cfg["cluster"][stage].items() if value is not None}


def submit_chunk(chunk: Sequence[Planned], params: Mapping[str, Any], folder: Path, code: Path, after: str | None) -> list[str]:
    """Submit one array per stage that these runs need, all of them or none; returns the arrays' ids."""
    heads: list[str] = []
    records: list[dict[str, Any]] = [{} for _ in chunk]
    try:
        for stage, needed in remaining_jobs(chunk[0]):
            dependency = (
                f"{'aftercorr' if len(chunk) > 1 else 'afterok'}:{heads[-1]}" if heads else after and f"afterok:{after}"
            )
            tasks = [stage_task(planned, stage, needed) for planned in chunk]
            ids = submit_array(tasks, needed, params, folder, code, f"{stage} {folder.name}", dependency)
            heads.append(ids[0].partition("_")[0])
            for record, job in zip(records, ids, strict=True):
                record[stage] = {"job": job, "resources": needed, "submitted": time.time()}
    except Refused:
        for head in heads:
            queue.slurm_output("scancel", head)
        raise
    origin = {"code": str(code), "launch": str(folder)}
    with ThreadPoolExecutor(WRITER_THREADS) as pool:
        paths = [planned.run.submission_path for planned in chunk]
        list(pool.map(write_json, paths, [{"stages": stages} | origin for stages in records]))
    return heads


def stage_task(planned: Planned, stage: str, needed: Resources) -> StageTask:
    """Return a run's task in an array; it starts one process per GPU of a node."""
    gpus, nodes, count = needed.get("gpus_per_node", 0), needed.get("nodes", 1), planned.cfg["distributed"]["processes"]
    return StageTask(str(planned.run.path), stage, gpus or max(1, count // nodes), planned.cfg["cluster"]["retries"])


@dataclass(frozen=True)
class ReportTask:
    """The last job of a launch: writes the report of its runs folder."""

    runs_dir: str

    def __call__(self) -> str:
        from rlvr_sweeps.reporting.page.report import write_report

        report = write_report(Path(self.runs_dir), Path(self.runs_dir) / "report.html")
        return "\n".join([f"{report.page}: {len(report.rows)} rows", *report.unreadable])


def submit_report(runs_dir: str, params: Mapping[str, Any], folder: Path, code: Path, submission: Submission) -> list[str]:
    """Submit the report job after all others; returns its id in a list, which is empty where Slurm accepts no further job."""
    dependency = "afterany:" + ":".join(submission.jobs)
    try:
        task = ReportTask(str(Path(runs_dir).absolute()))
        return submit_array([task], REPORT_RESOURCES, params, folder, code, f"report {folder.name}", dependency)
    except Refused as refusal:
        submission.reason = submission.reason or f"No report job was submitted ({refusal}). Run rlvr report when all is done."
        return []


def submit_array(
    tasks: Sequence[Any],
    needed: Resources,
    params: Mapping[str, Any],
    folder: Path,
    code: Path,
    name: str,
    dependency: str | None,
) -> list[str]:
    """Submit tasks as one array, or a single task as a job; returns their ids. Raises Refused with sbatch's message."""
    import submitit

    # Not a folder per job (%j): submitit creates it after sbatch, and a job that starts at once could not write its output.
    executor = submitit.AutoExecutor(folder=folder / ".submitit", cluster="slurm")
    options = {key: value for key, value in params.items() if key not in NOT_SBATCH and value is not None} | needed
    additional = dict(params.get("additional_parameters") or {})
    if dependency:
        additional |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    # The supervisor handles USR2; scancel --full and --signal=B: send it to the job's shell too, and would kill the shell.
    # Without PYTHONSAFEPATH, python -m would import the code of the launch's folder, which may be edited, not the snapshot.
    set_path = f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"
    setup = ["trap '' USR2", *(params.get("setup") or []), set_path]
    srun = ["--kill-on-bad-exit=1", *(params.get("srun_args") or [])]
    if options.get("cpus_per_task"):
        srun.append(f"--cpus-per-task={options['cpus_per_task']}")  # since Slurm 22.05, srun does not inherit it from sbatch
    if not options.get("gpus_per_node"):
        options.pop("gpus_per_node", None)
    executor.update_parameters(
        name=name, tasks_per_node=1, stderr_to_stdout=True, slurm_array_parallelism=params.get("array_parallelism", 256),
        slurm_signal_delay_s=params.get("signal_delay_s", 120), slurm_additional_parameters=additional, slurm_setup=setup,
        slurm_srun_args=srun, **{key if key in SUBMITIT_NAMES else f"slurm_{key}": value for key, value in options.items()},
    )  # fmt: skip
    try:
        # submitit also prints the error that it raises.
        with queue.without_job_environment(), contextlib.redirect_stderr(io.StringIO()):
            jobs = executor.submit_array(list(tasks)) if len(tasks) > 1 else [executor.submit(tasks[0])]
    except patches.failed_submission() as error:
        lines = [line.removeprefix("sbatch: error: ") for line in str(error).strip().splitlines()]
        raise Refused(f"sbatch: {'; '.join(lines)}") from None
    except FileNotFoundError as error:
        raise Refused(f"sbatch could not be started ({error}). Launch on a login node of the cluster.") from None
    return [job.job_id for job in jobs]


def snapshot_code(folder: Path) -> Path:
    """Return the folder `folder`/<hash> with a copy of the package, its plugin, conf/ and paper/; make it if it does not exist.

    Several launches may call this at the same time.
    """
    candidates = (path for name in SNAPSHOT_FOLDERS for path in (ROOT / name).rglob("*") if path.is_file())
    files = sorted(path for path in candidates if path.suffix in SNAPSHOT_SUFFIXES or WORLDS_FOLDER in path.parents)
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    snapshot = folder / digest.hexdigest()[:12]
    if snapshot.exists():
        return snapshot
    temporary = folder / f".{snapshot.name}.{os.getpid()}"
    for path in files:
        copy = temporary / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    (temporary / "commit").write_text(commit() or "")
    try:
        temporary.rename(snapshot)
    except OSError:  # another launch has made it in the meantime
        shutil.rmtree(temporary)
    return snapshot
