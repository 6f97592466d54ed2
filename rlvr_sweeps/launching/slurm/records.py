"""Records of submissions, written before sbatch, so that a launch that is cut off loses no job and submits none twice.

Jobs are submitted with a start time a year away, and with the record's token as comment, so that none starts before its
submission is recorded. (On hold, Slurm would not check whether any node has the requested resources.) A record is

    begun      jobs may be in the queue, unknown to their runs: the next launch cancels them
    recorded   every run's submission.json names its jobs, and none may start yet: the next launch releases them
    released   the jobs may start
    cancelled  the submission failed or was interrupted: its jobs were cancelled

Also after that a job with the token may appear: sbatch may time out although Slurm accepted the job, or outlive the launch
that started it. No record names it, and it does not start: an orphan, which `rlvr status` counts and the next launch cancels.
"""

import contextlib
import re
import time
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.files import read_object, write_json
from rlvr_sweeps.launching.slurm import queue
from rlvr_sweeps.runs.directory import Job, all_runs

FOLDER = ".submissions"  # of a runs folder
DEFERRED = "now+365days"  # the start time of jobs that are not released
TOKEN = re.compile(r"\brlvr-[0-9a-f]{12}\b")  # in the comment of a job


@dataclass
class SubmissionRecord:
    """A record in its file; `jobs`: ids of arrays and single jobs, in the order of submission; `start`: after the release."""

    path: Path
    start: str = "now"
    state: Literal["begun", "recorded", "released", "cancelled"] = "begun"
    jobs: list[str] = field(default_factory=list)

    @property
    def token(self) -> str:
        return self.path.stem

    def write(self, state: Literal["begun", "recorded", "released", "cancelled"]) -> None:
        """Store the record with a new state."""
        self.state = state
        write_json(self.path, {"state": state, "jobs": self.jobs, "start": self.start, "time": time.time()})


def begin(runs_dir: Path, start: str = "now") -> SubmissionRecord:
    """Write a new record and return it; call it under the folder's submission lock. `start`: when its jobs may start."""
    record = SubmissionRecord(runs_dir / FOLDER / f"rlvr-{uuid.uuid4().hex[:12]}.json", start)
    record.write("begun")
    return record


def load(path: Path) -> SubmissionRecord:
    """Return the record of a file; raise Damaged where it cannot be read."""
    stored = read_object(path, "start", "state", "jobs")
    if stored is None:
        raise Damaged(path, "it is missing")
    return SubmissionRecord(path, stored["start"], stored["state"], stored["jobs"])


def release(record: SubmissionRecord, only: Collection[str] | None = None) -> None:
    """Let the jobs of a record start, or those of them in `only`. Raises Refused where Slurm does not allow it."""
    for job in reversed(record.jobs):  # the first stage last: cut off before it, no stage has begun
        if only is None or job in only:
            queue.slurm_output("scontrol", "update", f"JobId={job}", f"StartTime={record.start}")
    record.write("released")


def heads(active: Iterable[str]) -> set[str]:
    """Return the ids of arrays and single jobs of job ids: 12 of 12_3."""
    return {job.partition("_")[0] for job in active}


def jobs_with(token: str, active: Mapping[str, Job]) -> set[str]:
    """Return the ids of the queued and running arrays and jobs that have the token in their comment."""
    return heads(job for job, facts in active.items() if token in facts.comment)


def cancel(record: SubmissionRecord, keep: Iterable[str] = ()) -> set[str]:
    """Cancel the jobs in the queue that have a record's token, without those in `keep`; returns their ids."""
    cancelled = jobs_with(record.token, queue.active_jobs()) - set(keep)
    if cancelled:
        queue.slurm_output("scancel", *sorted(cancelled))
    return cancelled


def orphans(runs_dir: Path, active: Mapping[str, Job], begun: bool) -> set[str]:
    """Return the ids of the jobs in the queue that a launch into this folder submitted and no run knows.

    `begun`: also those of begun records, whose launch may still be at work where the submission lock is not held by the caller.
    """
    unknown = set()
    for token in {match.group() for job in active.values() if (match := TOKEN.search(job.comment))}:
        path = runs_dir / FOLDER / f"{token}.json"
        if not path.exists():  # a job of another runs folder
            continue
        record = load(path)
        if begun or record.state != "begun":
            unknown |= jobs_with(token, active) - set(record.jobs if record.state in ("recorded", "released") else ())
    return unknown


def recover(runs_dir: Path, active: Mapping[str, Job]) -> list[str]:
    """Finish or undo the submissions that an earlier launch left unfinished; return a sentence on each.

    Call it under the folder's submission lock, when no other launch can be in the middle of a submission.
    """
    sentences = []
    if unknown := orphans(runs_dir, active, begun=True):
        queue.slurm_output("scancel", *sorted(unknown))
        sentences.append(f"Cancelled {named(unknown)} of an earlier launch that was cut off; no run knew it.")
    for path in sorted((runs_dir / FOLDER).glob("rlvr-*.json")):
        record = load(path)
        if record.state == "begun":
            undo(record)
        if record.state == "recorded":
            release(record, only=heads(active))
            sentences.append(f"Released {named(record.jobs)} of an earlier launch that was cut off before it did.")
    return sentences


def undo(record: SubmissionRecord) -> None:
    """Mark a record as cancelled, after its jobs were; its runs are then as if they had not been submitted."""
    for run in all_runs(record.path.parent.parent):
        with contextlib.suppress(Damaged):  # a damaged submission.json stays; rlvr status names it
            if (run.submission() or {}).get("record") == record.token:
                run.submission_path.unlink()
    record.write("cancelled")


def named(jobs: Iterable[str]) -> str:
    """Return `job 12`, or `jobs 12, 13`."""
    names = sorted(jobs)
    return f"job{'s' * (len(names) > 1)} {', '.join(names)}"


def warning(runs_dir: Path, active: Mapping[str, Job]) -> str | None:
    """Return a sentence on jobs in the queue that belong to no run, for a display; None without such jobs."""
    try:
        unknown = orphans(runs_dir, active, begun=False)
    except Damaged as damage:
        return str(damage)
    if not unknown:
        return None
    return (
        f"In the queue, deferred, and unknown to every run, since a launch was cut off: {named(unknown)}. The next launch "
        f"cancels that; or: scancel {' '.join(sorted(unknown))}"
    )


def cancel_quietly(record: SubmissionRecord) -> None:
    """Undo a submission that failed or was interrupted; where Slurm does not answer, the record stays begun."""
    try:
        cancel(record)
        undo(record)
    except Refused:
        return
