"""A plan to Slurm: frozen runs, one array per shape of resources, cut at the cluster's limits.

Of each array of trainings follows one of evaluations, task after task, and of each launch a job that writes the report. Slurm's
arrays and submitit's executor do it; what is kept here is which run became which task.
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
SUBMITIT_NAMES = (
    "nodes",
    "gpus_per_node",
    "cpus_per_task",
    "mem_gb",
    "timeout_min",
)  # submitit's own names; the rest are sbatch's
NOT_SBATCH = ("submitit_folder", "max_array_size", "poll_s", "max_num_timeout", "tasks_per_node", "name", "setup",
              "additional_parameters", "array_parallelism", "signal_delay_s", "stderr_to_stdout",
              "srun_args")  # fmt: skip
WRITER_THREADS = 16  # threads that write runs' files: a shared disk answers an fsync after milliseconds, but many at once
REPORT_RESOURCES = {"nodes": 1, "gpus_per_node": 0, "cpus_per_task": 1, "timeout_min": 30}
LIMIT_MESSAGES = ("MaxSubmitJob", "job submit limit", "MaxJobCount")  # in sbatch's words where no more jobs are taken


@dataclass
class Submission:
    """What became of a plan."""

    jobs: list[str] = field(default_factory=list)  # heads of arrays, in the order of submission
    runs: int = 0
    left: list[Run] = field(default_factory=list)
    why_left: str = ""


def submit(
    todo: Sequence[Planned], params: Mapping[str, Any], folder: Path, after: str | None = None, report: bool = True
) -> Submission:
    """Submit the runs of a plan; `after`: a job that must have succeeded before. Refused with Slurm's words."""
    code = snapshot_code(Path(todo[0].cfg["runs_dir"]).absolute() / ".code")
    size = params.get("max_array_size") or queue.config_number("MaxArraySize", 1001)
    done = Submission()
    groups: dict[str, list[Planned]] = {}
    for planned in todo:
        groups.setdefault(repr(remaining_jobs(planned)), []).append(planned)
    for group in groups.values():
        waiting = list(group)
        while waiting and size:
            chunk = waiting[:size]
            try:
                done.jobs += submit_chunk(chunk, params, folder, code, after)
            except Refused as refusal:
                if not any(word in str(refusal) for word in LIMIT_MESSAGES):
                    raise
                done.why_left = str(refusal)
                size = len(chunk) // 2  # down to a single run that is refused
                continue
            done.runs += len(chunk)
            waiting = waiting[len(chunk) :]
        done.left += [planned.run for planned in waiting]
    if done.left and not done.jobs and not queue.active_jobs():
        raise Refused(f"{done.why_left} (nothing of yours is in the queue: waiting changes nothing)")
    if done.jobs and report:
        done.jobs += submit_report(todo[0].cfg["runs_dir"], params, folder, code, done)
    return done


def remaining_jobs(planned: Planned) -> list[tuple[str, Resources]]:
    """The jobs a run still needs, each with its resources: what runs of one array share. An evaluation's job analyses too."""
    cfg = planned.cfg
    missing = [stage for stage in planned.run.stages(cfg) if not planned.run.is_done(stage, cfg)]
    jobs = dict.fromkeys("evaluate" if stage == "analyse" else stage for stage in missing)
    return [(stage, resources(cfg, stage)) for stage in jobs]


def resources(cfg: Resolved, stage: str) -> Resources:
    return {key: value for key, value in cfg["cluster"][stage].items() if value is not None}


def submit_chunk(chunk: Sequence[Planned], params: Mapping[str, Any], folder: Path, code: Path, after: str | None) -> list[str]:
    """One array for each stage these runs need; all of it or nothing. Returns the arrays' ids."""
    heads: list[str] = []
    records: list[dict[str, Any]] = [{} for _ in chunk]
    try:
        for stage, asked in remaining_jobs(chunk[0]):
            depends = f"{'aftercorr' if len(chunk) > 1 else 'afterok'}:{heads[-1]}" if heads else after and f"afterok:{after}"
            tasks = [stage_task(planned, stage, asked) for planned in chunk]
            ids = submit_array(tasks, asked, params, folder, code, f"{stage} {folder.name}", depends)
            heads.append(ids[0].partition("_")[0])
            for record, job in zip(records, ids, strict=True):
                record[stage] = {"job": job, "resources": asked, "submitted": time.time()}
    except Refused:
        for head in heads:
            queue.slurm_output("scancel", head)
        raise
    common = {"code": str(code), "launch": str(folder)}
    with ThreadPoolExecutor(WRITER_THREADS) as pool:
        paths = [planned.run.submission_path for planned in chunk]
        list(pool.map(write_json, paths, [{"stages": stages} | common for stages in records]))
    return heads


def stage_task(planned: Planned, stage: str, asked: Resources) -> StageTask:
    gpus, nodes, count = asked.get("gpus_per_node", 0), asked.get("nodes", 1), planned.cfg["distributed"]["processes"]
    return StageTask(str(planned.run.path), stage, gpus or max(1, count // nodes), planned.cfg["cluster"]["retries"])


@dataclass(frozen=True)
class ReportTask:
    """The last job of a launch: tables and the report of the folder its runs are in."""

    runs_dir: str

    def __call__(self) -> str:
        from rlvr_sweeps.reporting.page.report import write_report

        page, _, rows = write_report(Path(self.runs_dir), Path(self.runs_dir) / "report.html")
        return f"{page}: {len(rows)} rows"


def submit_report(runs_dir: str, params: Mapping[str, Any], folder: Path, code: Path, done: Submission) -> list[str]:
    """The job after all others; none where the account may have no further one."""
    depends = "afterany:" + ":".join(done.jobs)
    try:
        return submit_array(
            [ReportTask(str(Path(runs_dir).absolute()))],
            REPORT_RESOURCES,
            params,
            folder,
            code,
            f"report {folder.name}",
            depends,
        )
    except Refused as refusal:
        done.why_left = done.why_left or f"{refusal} (the report job: `rlvr report` does its work)"
        return []


def submit_array(
    tasks: Sequence[Any], asked: Resources, params: Mapping[str, Any], folder: Path, code: Path, name: str, depends: str | None
) -> list[str]:
    """Submit tasks as one array, or as one job; returns their ids."""
    import submitit

    # Not submitit's folder per job: it is made after sbatch, and a job that starts at once finds no place for its output.
    executor = submitit.AutoExecutor(folder=folder / ".submitit", cluster="slurm")
    wanted = {key: value for key, value in params.items() if key not in NOT_SBATCH and value is not None} | asked
    more = dict(params.get("additional_parameters") or {})
    if depends:
        more |= {"dependency": depends, "kill-on-invalid-dep": "yes"}
    # USR2 is the supervisor's; scancel --full and --signal=B: send it to the job's shell too, which would die of it.
    # Safe path: python -m would look into the folder of the launch first, where the code may have been edited since.
    frozen = f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"
    setup = ["trap '' USR2", *(params.get("setup") or []), frozen]
    srun = ["--kill-on-bad-exit=1", *(params.get("srun_args") or [])]
    if wanted.get("cpus_per_task"):
        srun.append(f"--cpus-per-task={wanted['cpus_per_task']}")  # srun of Slurm 22.05 and later does not take it from sbatch
    if not wanted.get("gpus_per_node"):
        wanted.pop("gpus_per_node", None)
    executor.update_parameters(
        name=name, tasks_per_node=1, stderr_to_stdout=True, slurm_array_parallelism=params.get("array_parallelism", 256),
        slurm_signal_delay_s=params.get("signal_delay_s", 120), slurm_additional_parameters=more, slurm_setup=setup,
        slurm_srun_args=srun, **{key if key in SUBMITIT_NAMES else f"slurm_{key}": value for key, value in wanted.items()},
    )  # fmt: skip
    try:
        with queue.without_job_environment(), contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises, too
            jobs = executor.submit_array(list(tasks)) if len(tasks) > 1 else [executor.submit(tasks[0])]
    except patches.failed_submission() as error:
        words = [line.removeprefix("sbatch: error: ") for line in str(error).strip().splitlines()]
        raise Refused(f"sbatch: {'; '.join(words)}") from None
    except FileNotFoundError as error:
        raise Refused(f"sbatch could not be started ({error}). Launch on a login node of the cluster.") from None
    return [job.job_id for job in jobs]


SNAPSHOT_FOLDERS = ("rlvr_sweeps", "hydra_plugins", "paper")  # the last job of a launch writes the report
SNAPSHOT_SUFFIXES = (".py", ".j2", ".css", ".js", ".yaml", ".csv")


def snapshot_code(folder: Path) -> Path:
    """`folder`/<hash>, holding this package and its plugin; made if it is not there. Safe for several at once."""
    found = (path for part in SNAPSHOT_FOLDERS for path in (ROOT / part).rglob("*") if path.is_file())
    files = sorted(path for path in found if path.suffix in SNAPSHOT_SUFFIXES or WORLDS_FOLDER in path.parents)
    total = hashlib.sha256()
    for path in files:
        total.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    place = folder / total.hexdigest()[:12]
    if place.exists():
        return place
    temporary = folder / f".{place.name}.{os.getpid()}"
    for path in files:
        copy = temporary / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    (temporary / "commit").write_text(commit() or "")
    try:
        temporary.rename(place)
    except OSError:  # another launch was faster
        shutil.rmtree(temporary)
    return place
