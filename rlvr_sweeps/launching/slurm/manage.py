"""`rlvr logs`, `rlvr cancel` and `rlvr retry`: read, stop and resubmit single runs after their launch."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.files import read_json, write_json
from rlvr_sweeps.launching.slurm import queue
from rlvr_sweeps.launching.slurm.submit import submit
from rlvr_sweeps.planning.plan import Planned
from rlvr_sweeps.runs.directory import Live, Run, State
from rlvr_sweeps.runs.examination import damaged, examine, repair
from rlvr_sweeps.runs.launches import submission_lock
from rlvr_sweeps.runs.reading import log_files, tail

FOLLOW_INTERVAL_S = 0.5  # between two looks at a log


def follow_log(path: Path, run: Run) -> Iterator[str]:
    """Yield the text appended to a log after this call, until the run is neither queued nor running."""
    with path.open(errors="replace") as file:
        file.seek(0, 2)
        while True:
            text = file.read()
            if text:
                yield text
            elif run.state(live=queue.active_jobs() if queue.slurm_is_installed() else None) not in ("running", "queued"):
                return
            else:
                time.sleep(FOLLOW_INTERVAL_S)


def cancel(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Cancel the runs' queued and running jobs; returns the jobs by run name. Refused where one of the runs has none."""
    active = queue.active_jobs()
    jobs = {run.name: [job for job in run.jobs().values() if job in active] for run in runs}
    if inactive := [name for name, own_jobs in jobs.items() if not own_jobs]:
        raise Refused(f"No job in the queue for {', '.join(inactive)}; nothing was cancelled. See rlvr status.")
    for run in runs:
        queue.slurm_output("scancel", *jobs[run.name])
        run.log_event("cancelled", jobs=jobs[run.name])
    return jobs


def retry(runs: Sequence[Run]) -> list[str]:
    """Submit failed, lost and stale runs again with their own configuration; returns the heads of the new job arrays.

    A run with damaged files is repaired first, where no new training is needed (see `rlvr doctor RUN`).

    Raises Refused for a run in another state, and for one that was never submitted to Slurm.
    """
    with ExitStack() as locks:
        for folder in sorted({run.path.parent for run in runs}):
            locks.enter_context(submission_lock(folder))
        return resubmit(runs)


def resubmit(runs: Sequence[Run]) -> list[str]:
    """`retry` under the submission locks of the runs' folders; each run takes the sbatch options of its last launch."""
    active = queue.active_jobs()
    by_launch: dict[str, list[Planned]] = {}
    for run in runs:
        state = state_after_repair(run, active)
        cfg, submission = run.config(), run.submission("launch")
        if state not in ("failed", "lost", "stale"):
            raise Refused(f"{run.name} is {state}: there is nothing to run again.")
        if submission is None:
            raise Refused(f"{run.name} was never submitted to Slurm. Launch it: python launch.py … cluster=slurm retry=true.")
        by_launch.setdefault(submission["launch"], []).append(Planned(run, cfg, state, True, 1))
    jobs = []
    for launch_folder, todo in by_launch.items():
        params: Mapping[str, Any] = read_json(Path(launch_folder) / "sbatch.json") or {}
        jobs += submit(todo, params, Path(launch_folder)).jobs
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


def save_sbatch_options(folder: Path, params: Mapping[str, Any]) -> None:
    """Write a launch's sbatch options (hydra.launcher) into its folder, for `retry`."""
    write_json(folder / "sbatch.json", json.loads(json.dumps(dict(params), default=str)))


def print_logs(run: Run, stage: str | None, lines: int, follow: bool) -> None:
    """Print the path and the last `lines` lines (0: all) of a run's newest log, of `stage` if given.

    `follow`: go on printing what is added until the run ends.
    """
    path = log_files(run, stage)[-1]
    sys.stdout.write(f"{path}\n{tail(path, lines)}")
    if follow:
        for text in follow_log(path, run):
            sys.stdout.write(text)
            sys.stdout.flush()
