"""`rlvr logs`, `rlvr cancel` and `rlvr retry`: read, stop and resubmit single runs after their launch."""

import json
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.files import read_json, read_rows, write_json
from rlvr_sweeps.launching.slurm import next_round, queue, records
from rlvr_sweeps.launching.slurm.submit import job_log, submit
from rlvr_sweeps.planning.plan import Planned
from rlvr_sweeps.runs.directory import Live, Run, State, all_runs
from rlvr_sweeps.runs.examination import damaged, examine, repair
from rlvr_sweeps.runs.launches import CANARY, submission_lock
from rlvr_sweeps.runs.reading import log_files, tail

FOLLOW_INTERVAL_S = 0.5  # between two looks at a log
STATE_INTERVAL_S = 5.0  # between two looks at the state of a run whose log does not grow
IDS_PER_SCANCEL = 500  # so that the command line stays short


def follow_log(path: Path, run: Run, stage: str | None = None) -> Iterator[str]:
    """Yield the text appended to a log after this call, until the run is neither queued nor running.

    Goes on with the log of the next stage, unless `stage` is given, after a line with its path. While Slurm does not answer,
    the run is unknown, and this goes on.
    """
    next_look = 0.0
    followed = {stage_of_log(path)}
    with ExitStack() as files:
        file = files.enter_context(path.open(errors="replace"))
        file.seek(0, 2)
        while True:
            if text := file.read():
                yield text
                continue
            with suppress(Refused):  # no stage has a log yet
                newest = newest_log(run, stage)
                if stage_of_log(newest) not in followed:
                    followed.add(stage_of_log(newest))
                    file = files.enter_context(newest.open(errors="replace"))
                    yield f"{newest}\n"
                    continue
            if time.monotonic() >= next_look:
                if run.state(live=queue.active_jobs_if_reachable()) not in ("running", "queued", "unknown"):
                    yield file.read()  # what was written since the last look
                    return
                next_look = time.monotonic() + STATE_INTERVAL_S
            time.sleep(FOLLOW_INTERVAL_S)


def stage_of_log(path: Path) -> str:
    """Return the stage of a log: `train` of train.txt and of train.1.txt, the second node's."""
    return path.name.partition(".")[0]


def cancel(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Cancel the runs' queued and running jobs, and the report job of every launch of which no other job is left then.

    Also cancels the last job of a round of which no other job is left. Returns the cancelled jobs by the run's name, and by the
    name of the report or last job. Raises Refused where one of the runs has none.
    """
    runs = list({run.path.absolute(): run for run in runs}.values())
    active = queue.active_jobs() if any(run.jobs() for run in runs) else {}
    own_jobs = [[job for job in run.jobs().values() if job in active] for run in runs]
    refuse_inactive([run for run, jobs in zip(runs, own_jobs, strict=True) if not jobs])
    all_own = {job for jobs in own_jobs for job in jobs}
    # The last jobs and reports first: they would start when the last of the other jobs has ended.
    lasts = next_round.cancel(next_round.waiting_only_for({run.path.absolute().parent for run in runs}, all_own, active))
    reports = report_jobs(launches_of(runs), all_own)
    ids = [job for jobs in [*reports.values(), *own_jobs] for job in jobs]
    for first in range(0, len(ids), IDS_PER_SCANCEL):  # --quiet: a job that has ended in the meantime is no error
        queue.slurm_output("scancel", "--quiet", *ids[first : first + IDS_PER_SCANCEL])
    cancelled: dict[str, list[str]] = {}
    for run, jobs in zip(runs, own_jobs, strict=True):
        run.log_event("cancelled", jobs=jobs)
        cancelled.setdefault(run.name, []).extend(jobs)  # a canary may have the name of a run
    return cancelled | reports | lasts


def refuse_inactive(runs: Sequence[Run]) -> None:
    """Raise Refused for runs without a job in the queue, if there are any, and say how to stop those of a local launch."""
    if local := [run.name for run in runs if run.is_claimed()]:
        raise Refused(
            f"{', '.join(local)} has no Slurm job: a launch with cluster=local works on it. Nothing was cancelled. To stop it, "
            "press Ctrl-C in the terminal of that launch."
        )
    if runs:
        raise Refused(f"No job in the queue for {', '.join(run.name for run in runs)}; nothing was cancelled. See rlvr status.")


def cancel_all(runs_dir: Path, sweep: str | None = None) -> dict[str, list[str]]:
    """Cancel every run of a folder that has a job in the queue, of this sweep label if given, and its canary; see `cancel`.

    Last jobs of rounds are cancelled even where all runs of their round have ended. Raises Refused where there is nothing to
    cancel.
    """
    lasts = next_round.cancel_of_sweep(runs_dir, sweep)  # first, so that none of them launches further runs
    active = queue.active_jobs()
    runs = [run for folder in (runs_dir, runs_dir / CANARY) for run in all_runs(folder)]
    in_queue = [run for run in runs if has_active_job(run, active)]
    labels = {run.path: sweep_of(run) for run in in_queue}
    chosen = [run for run in in_queue if sweep is None or labels[run.path] == sweep]
    if not chosen and not lasts:
        others = sorted({label for label in labels.values() if label})
        advice = f" Sweeps with jobs in the queue: {', '.join(others)}." if others else ""
        raise Refused(f"No run of {f'the sweep {sweep} in ' if sweep else ''}{runs_dir} has a job in the queue.{advice}")
    return cancel(chosen) | lasts


def has_active_job(run: Run, active: Live) -> bool:
    """Return whether one of a run's jobs is queued or running; print the name of a damaged submission.json."""
    try:
        return any(job in active for job in run.jobs().values())
    except Damaged as damage:
        print(f"{damage} Whether the run has a job in the queue is not known.", file=sys.stderr)
        return False


def sweep_of(run: Run) -> Any:
    """Return the sweep label of a run; None where its configuration has not been parsed yet."""
    return (run.parsed_config() or {"config": {}})["config"].get("sweep")


def launches_of(runs: Sequence[Run]) -> set[Path]:
    """Return the folders of the launches that submitted the runs."""
    submissions = [run.submission() or {} for run in runs]
    return {Path(submission["launch"]) for submission in submissions if submission.get("launch")}


def report_jobs(launches: Collection[Path], cancelled: Collection[str]) -> dict[str, list[str]]:
    """Return the report jobs, by name, of the launches that have no other job in the queue than the cancelled ones.

    A job belongs to the launch in whose folder its script is.
    """
    waiting: dict[Path, list[str]] = {}
    remaining: set[Path] = set()
    for line in queue.slurm_output("squeue", "--me", "-h", "-r", "-t", "all", "-o", "%i|%T|%j|%o").splitlines():
        job, state, name, script = line.split("|", 3)
        launch = next((folder for folder in launches if folder in Path(script).parents), None)
        if launch is None or state in queue.ENDED_STATES | {"COMPLETING"}:
            continue
        if name == f"report {launch.name}":
            waiting.setdefault(launch, []).append(job)
        elif job not in cancelled and name != next_round.name_of(launch):
            remaining.add(launch)
    return {f"report {launch.name}": jobs for launch, jobs in waiting.items() if launch not in remaining}


def retry(runs: Sequence[Run]) -> list[str]:
    """Submit failed, lost and stale runs again with their own configuration; returns the heads of the new job arrays.

    A run with damaged files is repaired first, where no new training is needed (see `rlvr doctor RUN`).

    Raises Refused for a run in another state, for one that was never submitted to Slurm, and where Slurm or the launch's folder
    does not allow it.
    """
    with ExitStack() as locks:
        for folder in sorted({run.path.parent for run in runs}):
            locks.enter_context(submission_lock(folder))
            for sentence in records.recover(folder, queue.active_jobs()):
                print(sentence, file=sys.stderr)
        return resubmit(runs)


def resubmit(runs: Sequence[Run]) -> list[str]:
    """`retry` under the submission locks of the runs' folders; each run takes the sbatch options of its last launch."""
    active = queue.active_jobs()
    by_launch: dict[str, list[Planned]] = {}
    for run in runs:
        state = state_after_repair(run, active)
        cfg, submitted = run.config(), run.submission("launch")
        if state not in ("failed", "lost", "stale"):
            raise Refused(f"{run.name} is {state}: there is nothing to run again.")
        if submitted is None:
            raise Refused(f"{run.name} was never submitted to Slurm. Launch it: python launch.py … cluster=slurm retry=true.")
        by_launch.setdefault(submitted["launch"], []).append(Planned(run, cfg, state, True, 1))
    options = {folder: saved_sbatch_options(Path(folder), todo) for folder, todo in by_launch.items()}
    jobs = []
    for folder, todo in by_launch.items():
        submission = submit(todo, options[folder], Path(folder), notify=lambda sentence: print(sentence, file=sys.stderr))
        jobs += submission.jobs
        if submission.refused or submission.unsubmitted:
            names = ", ".join(run.name for run in (*submission.refused, *submission.unsubmitted))
            raise Refused(
                f"Submitted as jobs {', '.join(jobs) or 'none'}; not {names}: {submission.refusal or submission.reason}"
            )
    return jobs


def state_after_repair(run: Run, active: Live) -> State:
    """Return a run's state, after a repair of its damaged files; raise Refused where they cannot be repaired.

    Checkpoints are not read here: the training verifies them, and goes on from the newest that is whole.
    """
    try:
        state = run.state(run.config(), active)
        failed_by_damage = state == "failed" and "Damaged" in str((run.failure() or {}).get("error"))
        if not failed_by_damage:
            return state
    except Damaged:
        failed_by_damage = False
    verdicts = examine(run, weights=failed_by_damage)
    if not damaged(verdicts):
        return run.state(run.config(), active)
    for sentence in repair(run, verdicts):
        print(f"{run.name}: {sentence}", file=sys.stderr)
    return run.state(run.config(), active)


def saved_sbatch_options(folder: Path, todo: Sequence[Planned]) -> Mapping[str, Any]:
    """Return the options that save_sbatch_options wrote; raise Refused where they are gone."""
    options: Mapping[str, Any] | None = read_json(folder / "sbatch.json")
    if options is None:
        raise Refused(
            f"The launch folder {folder} is gone, and with it the options of sbatch (partition, account, setup lines) of "
            f"{', '.join(planned.run.name for planned in todo)}. Nothing was submitted. Launch again: python launch.py … "
            "cluster=slurm retry=true, with the overrides of the first launch."
        )
    return options


def save_sbatch_options(folder: Path, params: Mapping[str, Any]) -> None:
    """Write a launch's sbatch options (hydra.launcher) into its folder, for `retry`."""
    write_json(folder / "sbatch.json", json.loads(json.dumps(dict(params), default=str)))


def newest_log(run: Run, stage: str | None) -> Path:
    """Return a run's newest log, of `stage` if given; that of its Slurm job, if the job ended before it started the run.

    Raises Refused where there is none.
    """
    return unstarted_job_log(run, stage) or log_files(run, stage)[-1]


def unstarted_job_log(run: Run, stage: str | None = None) -> Path | None:
    """Return the output of the first job of a run's last submission, where none of its jobs has started the run.

    It has the errors of the setup lines and of Slurm. None where a job has started the run, and where there is no output.
    """
    submission, jobs = run.submission() or {}, run.jobs()
    if "launch" not in submission or any(
        event["event"] == "start" and event.get("job") in jobs.values() for event in read_rows(run.attempts_path, "event")
    ):
        return None
    logs = [job_log(submission, job) for name, job in jobs.items() if stage in (None, name)]
    return next((path for path in logs if path.exists()), None)


def print_logs(run: Run, stage: str | None, lines: int, follow: bool) -> None:
    """Print the path and the last `lines` lines (0: all) of a run's newest log, of `stage` if given.

    `follow`: go on printing what is added until the run ends.
    """
    path = newest_log(run, stage)
    sys.stdout.write(f"{path}\n{tail(path, lines)}")
    if follow:
        for text in follow_log(path, run, stage):
            sys.stdout.write(text)
            sys.stdout.flush()
