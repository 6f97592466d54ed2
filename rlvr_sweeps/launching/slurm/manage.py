"""`rlvr logs`, `rlvr cancel`, `rlvr retry`: what is done to single runs after their launch."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json, write_json
from rlvr_sweeps.launching.slurm import queue
from rlvr_sweeps.launching.slurm.submit import submit
from rlvr_sweeps.planning.plan import Planned
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.launches import submission_lock
from rlvr_sweeps.runs.reading import log_files, tail

FOLLOW_S = 0.5


def follow_log(path: Path, run: Run) -> Iterator[str]:
    """What is appended to a log from now on, until the run is at rest."""
    with path.open(errors="replace") as file:
        file.seek(0, 2)
        while True:
            text = file.read()
            if text:
                yield text
            elif run.state(live=queue.active_jobs() if queue.slurm_is_installed() else None) not in ("running", "queued"):
                return
            else:
                time.sleep(FOLLOW_S)


def cancel(runs: Sequence[Run]) -> dict[str, list[str]]:
    """scancel the queued and working jobs of runs; returns them by run. Refused where a run has none."""
    live = queue.active_jobs()
    jobs = {run.name: [job for job in run.jobs().values() if job in live] for run in runs}
    if idle := [name for name, of_run in jobs.items() if not of_run]:
        raise Refused(f"{', '.join(idle)} has no job in the queue; nothing was cancelled.")
    for run in runs:
        queue.slurm_output("scancel", *jobs[run.name])
        run.log_event("cancelled", jobs=jobs[run.name])
    return jobs


def retry(runs: Sequence[Run]) -> list[str]:
    """Submit failed and lost runs again, as they were; returns the new jobs. Refused where a run needs none."""
    with ExitStack() as held:
        for folder in sorted({run.path.parent for run in runs}):
            held.enter_context(submission_lock(folder))
        return resubmit(runs)


def resubmit(runs: Sequence[Run]) -> list[str]:
    live = queue.active_jobs()
    by_launch: dict[str, list[Planned]] = {}
    for run in runs:
        cfg = run.config()
        state = run.state(cfg, live)
        submitted = read_json(run.submission_path)
        if state not in ("failed", "lost", "stale"):
            raise Refused(f"{run.name} is {state}: there is nothing to run again.")
        if submitted is None:
            raise Refused(f"{run.name} was never submitted. Launch it: python launch.py … cluster=slurm retry=true.")
        by_launch.setdefault(submitted["launch"], []).append(Planned(run, cfg, state, True, 1))
    jobs = []
    for launch, todo in by_launch.items():
        params: Mapping[str, Any] = read_json(Path(launch) / "sbatch.json") or {}
        jobs += submit(todo, params, Path(launch)).jobs
    return jobs


def save_sbatch_options(folder: Path, params: Mapping[str, Any]) -> None:
    """Keep a launch's options of sbatch for `retry`."""
    write_json(folder / "sbatch.json", json.loads(json.dumps(dict(params), default=str)))


def print_logs(run: Run, stage: str | None, lines: int, stay: bool) -> None:
    path = log_files(run, stage)[-1]
    sys.stdout.write(f"{path}\n{tail(path, lines)}")
    if stay:
        for text in follow_log(path, run):
            sys.stdout.write(text)
            sys.stdout.flush()
