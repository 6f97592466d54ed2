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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlvr_sweeps import patches
from rlvr_sweeps.assets.locations import WORLDS_FOLDER
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import gpu_count
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import write_json
from rlvr_sweeps.launching.slurm import queue, records
from rlvr_sweeps.launching.slurm.options import Resources, checked_setup, job_options, resources, without_gpus
from rlvr_sweeps.launching.slurm.records import SubmissionRecord
from rlvr_sweeps.launching.slurm.supervisor import StageTask
from rlvr_sweeps.paths import ROOT
from rlvr_sweeps.planning.notice import SHORTEST_S, notice_s
from rlvr_sweeps.planning.plan import Planned
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.versions import commit

RETRY_WAITS_S = (1, 2, 5, 10, 20, 40, 45)  # before sbatch is tried again
LOG_FOLDER = ".submitit"  # of a launch's folder
WRITER_THREADS = 16  # a shared disk answers an fsync after milliseconds, but answers many at the same time
SNAPSHOT_FOLDERS = ("rlvr_sweeps", "hydra_plugins", "conf", "paper")  # conf and paper: for the job that writes the report
SNAPSHOT_SUFFIXES = (".py", ".j2", ".css", ".js", ".yaml", ".csv")


@dataclass
class Submission:
    """The submitted jobs of a launch, and the runs that Slurm did not accept."""

    jobs: list[str] = field(default_factory=list)  # ids of arrays and single jobs, in the order of submission
    runs: int = 0  # submitted
    unsubmitted: list[Run] = field(default_factory=list)  # Slurm accepts them when the user has fewer jobs
    reason: str = ""  # Slurm's message on unsubmitted runs, or on a missing report job
    refused: list[Run] = field(default_factory=list)  # Slurm will never accept them as they are
    refusal: str = ""  # Slurm's message on them


@dataclass(frozen=True)
class Target:
    """Where and how a launch submits: hydra.launcher with the site's defaults, the launch's folder, its copy of the code."""

    params: Mapping[str, Any]
    folder: Path
    code: Path
    runs_dir: Path
    notify: Callable[[str], object]  # called with a sentence when a submission is tried again

    @property
    def start(self) -> str:
        """When jobs may start: sbatch's `begin` in the additional parameters, else now."""
        return str((self.params.get("additional_parameters") or {}).get("begin", "now"))


@dataclass(frozen=True)
class Array:
    """Tasks that are submitted together, with the resources and the notice of each, its name, and the job it waits for."""

    tasks: Sequence[Any]
    needed: Resources
    notice_s: int
    name: str
    dependency: str | None


def submit(
    todo: Sequence[Planned],
    params: Mapping[str, Any],
    folder: Path,
    after: str | None = None,
    report: bool = True,
    notify: Callable[[str], object] = str,
) -> Submission:
    """Submit runs, as many as the user's limits allow; `after`: a job that must succeed first; `report`: add the report job.

    `params` is hydra.launcher, `folder` the launch's folder; `notify` is called with a sentence before sbatch is tried again.
    Call it under the submission lock of the runs folder. Raises Refused, with Slurm's message, where none is accepted, and
    where the launch is interrupted.
    """
    runs_dir = Path(todo[0].cfg["runs_dir"]).absolute()
    target = Target(params, folder, snapshot_code(runs_dir / ".code"), runs_dir, notify)
    size = params.get("max_array_size") or queue.config_number("MaxArraySize", 1001)
    submission = Submission()
    groups: dict[str, list[Planned]] = {}
    for planned in todo:
        groups.setdefault(repr(remaining_jobs(planned)), []).append(planned)
    try:
        for group in groups.values():
            submit_group(group, size, target, after, submission)
        if submission.jobs and report:
            submission.jobs += submit_report(todo[0].cfg, target, submission)
    except KeyboardInterrupt:
        raise Refused(
            f"Interrupted: {submission.runs} of {len(todo)} runs are submitted and continue; the others are not. The same "
            "command submits them. To stop the submitted ones: rlvr cancel --all."
        ) from None
    if not submission.runs and submission.refused:
        raise Refused(submission.refusal)
    return submission


def submit_group(group: Sequence[Planned], size: int, target: Target, after: str | None, submission: Submission) -> None:
    """Submit runs that need the same jobs in arrays of at most `size` tasks, smaller ones where Slurm's limits require it."""
    waiting = list(group)
    while waiting and size:
        chunk = waiting[:size]
        try:
            submission.jobs += submit_chunk(chunk, target, after)
        except Refused as refusal:
            if queue.refusal_kind(str(refusal)) != "full":
                submission.refused += waiting_runs(waiting)
                submission.refusal = str(refusal)
                return
            submission.reason = str(refusal)
            size = len(chunk) // 2  # 0 after a single run is refused: nothing more is submitted
            continue
        submission.runs += len(chunk)
        waiting = waiting[len(chunk) :]
    if waiting and not queue.frees_itself(submission.reason, target.params.get("account"), target.params.get("qos")):
        submission.refused += waiting_runs(waiting)
        submission.refusal = (
            f"{submission.reason} (you have no job in the queue that counts towards it: waiting changes nothing)"
        )
    else:
        submission.unsubmitted += waiting_runs(waiting)


def waiting_runs(waiting: Sequence[Planned]) -> list[Run]:
    return [planned.run for planned in waiting]


def remaining_jobs(planned: Planned) -> list[tuple[str, Resources]]:
    """Return the jobs that a run still needs, each with its resources; the evaluation's job runs the analysis too."""
    cfg = planned.cfg
    missing = [stage for stage in planned.run.stages(cfg) if not planned.run.is_done(stage, cfg)]
    jobs = dict.fromkeys("evaluate" if stage == "analyse" else stage for stage in missing)
    return [(stage, resources(cfg, stage)) for stage in jobs]


def submit_chunk(chunk: Sequence[Planned], target: Target, after: str | None) -> list[str]:
    """Submit one array per stage that these runs need, all of them or none, and let them start; returns the arrays' ids."""
    record = records.begin(target.runs_dir, target.start)
    tasks: list[dict[str, Any]] = [{} for _ in chunk]
    try:
        for stage, needed in remaining_jobs(chunk[0]):
            dependency = (
                f"{'aftercorr' if len(chunk) > 1 else 'afterok'}:{record.jobs[-1]}"
                if record.jobs
                else after and f"afterok:{after}"
            )
            notice = notice_s((planned.cfg for planned in chunk), target.params)
            stage_tasks = [stage_task(planned, stage, needed, notice) for planned in chunk]
            array = Array(stage_tasks, needed, notice, f"{stage} {target.folder.name}", dependency)
            ids = submit_array(array, target, record)
            for task, job in zip(tasks, ids, strict=True):
                task[stage] = {"job": job, "resources": needed, "submitted": time.time()}
        origin = {"code": str(target.code), "launch": str(target.folder), "record": record.token}
        with ThreadPoolExecutor(WRITER_THREADS) as pool:
            paths = [planned.run.submission_path for planned in chunk]
            list(pool.map(write_json, paths, [{"stages": stages} | origin for stages in tasks]))
        record.write("recorded")
    except BaseException:
        records.cancel_quietly(record)
        raise
    release(record, target)
    return record.jobs


def release(record: SubmissionRecord, target: Target) -> None:
    """Let the recorded jobs start; where Slurm does not answer for long, the next launch does it."""
    waits = list(RETRY_WAITS_S)
    while True:
        try:
            records.release(record)
            return
        except Refused as refusal:
            if not waits or queue.refusal_kind(str(refusal)) != "transient":
                target.notify(f"{refusal} Deferred until the same command is typed again: {records.named(record.jobs)}.")
                return
            time.sleep(waits.pop(0))


def stage_task(planned: Planned, stage: str, needed: Resources, notice_s: float) -> StageTask:
    """Return a run's task in an array; it starts one process per GPU of a node."""
    gpus, nodes = gpu_count(needed.get("gpus_per_node", 0)), needed.get("nodes", 1)
    count = planned.cfg["distributed"]["processes"]
    processes, retries = gpus or max(1, count // nodes), planned.cfg["cluster"]["retries"]
    return StageTask(str(planned.run.path), stage, processes, retries, notice_s)


@dataclass(frozen=True)
class ReportTask:
    """The last job of a launch: writes the report of its runs folder."""

    runs_dir: str

    def __call__(self) -> str:
        from rlvr_sweeps.reporting.page.report import write_report

        report = write_report(Path(self.runs_dir), Path(self.runs_dir) / "report.html")
        return "\n".join([f"{report.page}: {len(report.rows)} rows", *report.unreadable])


def submit_report(cfg: Resolved, target: Target, submission: Submission) -> list[str]:
    """Submit the report job after all others; returns its id in a list, which is empty where Slurm accepts no further job."""
    dependency = "afterany:" + ":".join(submission.jobs)
    target = replace(target, params=without_gpus(target.params))
    record = records.begin(target.runs_dir, target.start)
    try:
        task, needed = ReportTask(str(target.runs_dir)), resources(cfg, "report")
        submit_array(Array([task], needed, SHORTEST_S, f"report {target.folder.name}", dependency), target, record)
        record.write("recorded")
    except BaseException as error:
        records.cancel_quietly(record)
        if not isinstance(error, Refused):
            raise
        submission.reason = submission.reason or f"No report job was submitted ({error}). Run rlvr report when all is done."
        return []
    release(record, target)
    return record.jobs


def submit_array(array: Array, target: Target, record: SubmissionRecord) -> list[str]:
    """Submit an array, or a single task as a job, with a deferred start, add it to the record, and return the tasks' ids.

    Where sbatch does not reach Slurm, or loses its answer, it is tried again after growing waits, of two minutes in all. Raises
    Refused with sbatch's message.
    """
    waits = list(RETRY_WAITS_S)
    while True:
        try:
            ids = sbatch(array, target, record.token)
            break
        except Refused as refusal:
            if not waits or queue.refusal_kind(str(refusal)) != "transient":
                raise
            target.notify(f"{refusal} Trying again in {waits[0]} s.")
            time.sleep(waits.pop(0))
    record.jobs.append(ids[0].partition("_")[0])
    if len(waits) < len(RETRY_WAITS_S):  # sbatch may have lost the answer to a job that Slurm did accept
        with contextlib.suppress(Refused):
            records.cancel(record, keep=record.jobs)
    return ids


def sbatch(array: Array, target: Target, token: str) -> list[str]:
    """Call sbatch once for an array's tasks, with a deferred start and the token in the comment; return their ids."""
    import submitit

    params, tasks = target.params, list(array.tasks)
    # Not a folder per job (%j): submitit creates it after sbatch, and a job that starts at once could not write its output.
    executor = submitit.AutoExecutor(folder=target.folder / LOG_FOLDER, cluster="slurm")
    options, additional = job_options(array.needed, params)
    comment = " ".join(filter(None, (params.get("comment"), token)))
    additional |= {"begin": records.DEFERRED}
    if array.dependency:
        additional |= {"dependency": array.dependency, "kill-on-invalid-dep": "yes"}
    # The supervisor handles USR2; scancel --full and --signal=B: send it to the job's shell too, and would kill the shell.
    # Without PYTHONSAFEPATH, python -m would import the code of the launch's folder, which may be edited, not the snapshot.
    code = shlex.quote(str(target.code))
    # A job that submits further jobs has the path already.
    set_path = (
        f'export PYTHONSAFEPATH=1; case "${{PYTHONPATH-}}:" in {code}:*) ;; *) '
        f'export PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}";; esac'
    )
    setup = ["trap '' USR2", FIND_SCONTROL, *checked_setup(params.get("setup") or []), set_path]
    srun = ["--kill-on-bad-exit=1", *(params.get("srun_args") or [])]
    if options.get("cpus_per_task"):
        srun.append(f"--cpus-per-task={options['cpus_per_task']}")  # since Slurm 22.05, srun does not inherit it from sbatch
    executor.update_parameters(
        name=array.name, tasks_per_node=1, stderr_to_stdout=True, slurm_array_parallelism=params.get("array_parallelism", 256),
        slurm_signal_delay_s=array.notice_s, slurm_additional_parameters=additional, slurm_setup=setup,
        slurm_srun_args=srun, slurm_comment=comment, slurm_teardown=[requeue_on_request(target.folder / LOG_FOLDER)], **options,
    )  # fmt: skip
    try:
        # submitit also prints the error that it raises.
        with queue.without_job_environment(), contextlib.redirect_stderr(io.StringIO()):
            jobs = executor.submit_array(tasks) if len(tasks) > 1 else [executor.submit(*tasks)]
    except patches.failed_submission() as error:
        lines = [line.removeprefix("sbatch: error: ") for line in str(error).strip().splitlines()]
        raise Refused(f"sbatch: {'; '.join(lines)}") from None
    except FileNotFoundError as error:
        raise Refused(f"sbatch could not be started ({error}). Launch on a login node of the cluster.") from None
    return [job.job_id for job in jobs]


# The batch script knows scontrol before the setup lines change the path, and outside a container.
FIND_SCONTROL = "scontrol=$(command -v scontrol)"


def requeue_on_request(folder: Path) -> str:
    """Return the batch script's last line, which requeues the job where its supervisor asked for it by a file in `folder`.

    A task is named by its array: the raw id of an array's last task is the id of the whole array.
    """
    request = f"{shlex.quote(str(folder))}/$SLURM_JOB_ID.requeue"
    job = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
    return f'code=$?; if [ -e {request} ]; then rm {request}; "$scontrol" requeue {job}; sleep 60; fi; exit $code'


def job_log(submission: Mapping[str, Any], job: str) -> Path:
    """Return the log of a job of a run's submission.json, which has the output of its setup lines and of its supervisor."""
    return Path(submission["launch"]) / LOG_FOLDER / f"{job}_0_log.out"


def snapshot_code(folder: Path) -> Path:
    """Return the folder `folder`/<hash> with a copy of launch.py, the package, its plugin, conf/ and paper/; make it if needed.

    Several launches may call this at the same time.
    """
    candidates = (path for name in SNAPSHOT_FOLDERS for path in (ROOT / name).rglob("*") if path.is_file())
    chosen = (path for path in candidates if path.suffix in SNAPSHOT_SUFFIXES or WORLDS_FOLDER in path.parents)
    files = sorted([*chosen, ROOT / "launch.py"])
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
