"""The last job of a round: when the round's jobs have ended, it runs the launch command again, which submits the next round.

Launches with budget= or lr=auto submit one round at a time. Their last job waits for all jobs of the round (`afterany`,
which a requeue does not fulfil), runs the frozen copy of the code, and submits only runs that were never submitted: a run that
failed or was lost waits for a person, so that the rounds end. `runs_dir/.rounds/<command>.json` names the job of a command
while it is queued or running, and the error where it could not go on.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlvr_sweeps.config.identity import digest
from rlvr_sweeps.config.sweeps import key_of
from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.files import read_object, write_json
from rlvr_sweeps.launching.slurm import queue, records
from rlvr_sweeps.launching.slurm.options import resources, without_gpus
from rlvr_sweeps.launching.slurm.submit import LOG_FOLDER, Array, Target, release, snapshot_code, submit_array
from rlvr_sweeps.planning.notice import SHORTEST_S
from rlvr_sweeps.planning.plan import Planned
from rlvr_sweeps.runs.directory import Job, Live, NoAnswer

FOLDER = ".rounds"  # of a runs folder
ROUND_JOB = "RLVR_ROUND_JOB"  # environment variable of a launch that a last job runs: the job's id
LR_SETTING = "hydra.sweeper.lr"  # what launch.py makes of lr=auto
ERROR_CHARACTERS = 600  # of a failed launch's output that are kept


@dataclass(frozen=True)
class LastJob:
    """The last job of a command's round, as its file in runs_dir/.rounds stores it."""

    job: str  # "": Slurm did not accept it
    arguments: list[str]  # of launch.py
    folder: str  # in which the command was typed
    launch: str  # folder of the launch
    sweep: str | None  # label
    waits_for: list[str]  # the jobs of the round
    error: str = ""  # why it did not launch the next round

    @property
    def name(self) -> str:
        return name_of(Path(self.launch))

    @property
    def command(self) -> str:
        """The command to type where the job could not run it."""
        return f"cd {shlex.quote(self.folder)} && {shlex.join(['python', 'launch.py', *self.arguments])}"

    def is_in(self, active: Mapping[str, Job]) -> bool:
        """Return whether the job is queued or running."""
        return self.job in active


def name_of(launch: Path) -> str:
    """Return the name of the last job of a launch."""
    return f"next round {launch.name}"


def typed_arguments() -> list[str]:
    """Return the arguments of this launch for its last job: lr=auto as typed, and without retry=true, which would not end."""
    arguments = [text for text in sys.argv[1:] if key_of(text).lstrip("+") != "retry"]
    return [text.replace(f"{LR_SETTING}=", "lr=", 1) if key_of(text) == LR_SETTING else text for text in arguments]


def path_of(runs_dir: Path, arguments: Sequence[str]) -> Path:
    """Return the file of a command's last job."""
    command = [text for text in arguments if not text.startswith("hydra.sweep.dir=")]
    return runs_dir / FOLDER / f"{digest({'arguments': command, 'folder': str(Path.cwd())})}.json"


def read(path: Path) -> LastJob | None:
    """Return the last job that a file stores; None without the file. Raises Damaged."""
    stored = read_object(path, "job", "arguments", "folder", "launch", "sweep", "waits_for", "error")
    return LastJob(**stored) if stored else None


def all_of(runs_dir: Path) -> dict[Path, LastJob]:
    """Return the last jobs of every command of a runs folder, by file. A damaged file is left out, and named on stderr."""
    jobs = {}
    for path in sorted((runs_dir / FOLDER).glob("[!.]*.json")):
        try:
            if last := read(path):
                jobs[path] = last
        except Damaged as damage:
            print(damage, file=sys.stderr)
    return jobs


def is_last_job() -> bool:
    """Return whether a last job, not a person, runs this launch."""
    return ROUND_JOB in os.environ


def forget_ended(runs_dir: Path) -> None:
    """Remove the file of this command's last job where that has ended: the command is being run again."""
    path = path_of(runs_dir, typed_arguments())
    with suppress(Damaged):
        last = read(path)
        if last is None or last.is_in(queue.active_jobs()):
            return
    path.unlink(missing_ok=True)


def submit_last_job(
    plan: Sequence[Planned], params: Mapping[str, Any], folder: Path, submitted: bool, notify: Callable[[str], object]
) -> str | None:
    """Submit the last job of a round; return a sentence on it, and None where the round has no job to wait for.

    `params` is hydra.launcher, `folder` the launch's folder; `submitted`: this launch submitted runs. A last job of the same
    command that waits in the queue is kept. Call it under the submission lock of the runs folder.
    """
    runs_dir, arguments = Path(plan[0].cfg["runs_dir"]).absolute(), typed_arguments()
    active = queue.active_jobs()
    waits_for = sorted({job for planned in plan for job in jobs_of(planned) if job in active})
    if not submitted and not waits_for:
        return None
    path, own = path_of(runs_dir, arguments), os.environ.get(ROUND_JOB)
    with suppress(Damaged):
        earlier = read(path)
        if earlier and earlier.job != own and earlier.is_in(active) and active[earlier.job].is_pending:
            return f"the next round: job {earlier.job}, which is in the queue"
    target = Target(without_gpus(params), folder, snapshot_code(runs_dir / ".code"), runs_dir, notify)
    last = LastJob("", arguments, str(Path.cwd()), str(folder), plan[0].cfg["sweep"], waits_for)
    site = {name: value for name, value in os.environ.items() if name.startswith("SBATCH_")}  # sbatch hides them from the job
    task = NextRound(str(path), str(target.code / "launch.py"), site)
    dependency = f"afterany:{':'.join(shortened(waits_for, active))}" if waits_for else None
    record = records.begin(runs_dir, target.start)
    try:
        submit_array(Array([task], resources(plan[0].cfg, "report"), SHORTEST_S, last.name, dependency), target, record)
        write_json(path, asdict(replace(last, job=record.jobs[0])))
        record.write("recorded")
    except BaseException as error:
        records.cancel_quietly(record)
        if not isinstance(error, Refused):
            raise
        write_json(path, asdict(replace(last, error=str(error))))
        return f"[yellow]No job launches the next round ({error}). When the runs have ended: {last.command}[/yellow]"
    release(record, target)
    return f"the next round: job {record.jobs[0]} launches it when these runs have ended"


def jobs_of(planned: Planned) -> list[str]:
    """Return the jobs of a run; none where its submission.json is damaged, which the plan says."""
    try:
        return list(planned.run.jobs().values())
    except Damaged:
        return []


def shortened(jobs: Collection[str], active: Mapping[str, Job]) -> list[str]:
    """Return job ids for a dependency: an array in place of its tasks, where all that are in the queue are among `jobs`."""
    others = records.heads(set(active) - set(jobs))
    return sorted({job if job.partition("_")[0] in others else job.partition("_")[0] for job in jobs})


@dataclass(frozen=True)
class NextRound:
    """The task of a last job: runs launch.py of the frozen code again with the arguments in the job's file."""

    path: str  # of the file in runs_dir/.rounds
    program: str
    site: Mapping[str, str]  # SBATCH_* variables of the launch

    def __call__(self) -> str:
        job, path = os.environ["SLURM_JOB_ID"], Path(self.path)
        last = read(path)
        if last is None or last.job != job:  # cancelled, or another job has taken its part
            return "nothing to do: this command has another last job"
        print(last.command, flush=True)
        with queue.without_job_environment():
            command, environment = [sys.executable, self.program, *last.arguments], {**os.environ, **self.site, ROUND_JOB: job}
            process = subprocess.run(command, cwd=last.folder, env=environment, stderr=subprocess.PIPE, text=True)
        print(process.stderr, end="", flush=True)
        still = read(path)
        if still is None or still.job != job:  # the launch submitted the next round with a last job of its own
            return "the next round is submitted"
        if process.returncode == 0:
            path.unlink()
            return "nothing is left to launch"
        error = process.stderr.strip()[-ERROR_CHARACTERS:] or f"exit code {process.returncode}"
        write_json(path, asdict(replace(last, error=error)))
        raise RuntimeError(f"The next round was not launched: {error}\nTo go on: {last.command}")


def waiting_only_for(runs_dirs: Collection[Path], cancelled: Collection[str], active: Mapping[str, Job]) -> dict[Path, LastJob]:
    """Return the last jobs in the queue, by file, for which no job of their round but those of `cancelled` is left."""
    return {
        path: last
        for runs_dir in runs_dirs
        for path, last in all_of(runs_dir).items()
        if last.is_in(active)
        and set(last.waits_for) & set(cancelled)
        and not {job for job in last.waits_for if job in active} - set(cancelled)
    }


def cancel(jobs: Mapping[Path, LastJob]) -> dict[str, list[str]]:
    """Cancel last jobs; return them by name."""
    cancelled: dict[str, list[str]] = {}
    for path, last in jobs.items():
        queue.slurm_output("scancel", "--quiet", last.job)
        path.unlink(missing_ok=True)
        cancelled.setdefault(last.name, []).append(last.job)
    return cancelled


def cancel_of_sweep(runs_dir: Path, sweep: str | None) -> dict[str, list[str]]:
    """Cancel the queued and running last jobs of a runs folder, of this sweep label if given; return them by name."""
    jobs = {path: last for path, last in all_of(runs_dir).items() if sweep in (None, last.sweep)}
    active = queue.active_jobs() if jobs else {}
    return cancel({path: last for path, last in jobs.items() if last.is_in(active)})


def warning(runs_dir: Path, active: Live | None) -> str | None:
    """Return a sentence on a round that was not launched, with the command to type, for a display; None without one."""
    for last in all_of(runs_dir).values():
        if last.error:
            return f"The next round was not launched ({' '.join(last.error.split())}). To go on: {last.command}"
        if active is not None and not isinstance(active, NoAnswer) and not last.is_in(active):
            log = Path(last.launch) / LOG_FOLDER / f"{last.job}_0_log.out"
            return f"Job {last.job} ended without launching the next round; its output: {log}. To go on: {last.command}"
    return None
