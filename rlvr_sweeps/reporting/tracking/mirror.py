"""Send a run's files to one tracker from a separate process, so that no failure of the tracker affects training.

    python -m rlvr_sweeps.reporting.tracking.mirror '{"run": path, "tracker": "wandb", …}'

Only the rows after the last step that the tracker has are sent, so a requeued run continues its curves and repeated steps are
sent once. If W&B's server refuses or does not answer, the mirror restarts offline, with one line in the stage's log; any other
error ends this process only. Each tracker has its own process and its own mirror file.
"""

import fcntl
import json
import os
import select
import signal
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlvr_sweeps.errors import Damaged
from rlvr_sweeps.files import read_object, read_rows, text_digest, try_lock, write_json
from rlvr_sweeps.reporting.tracking.names import REACH_STEP, STEP, TITLES, benchmark_rows, reach_point, sample_rows, step_point
from rlvr_sweeps.reporting.tracking.stage import Task, command
from rlvr_sweeps.reporting.tracking.tensorboard_tracker import TensorboardTracker
from rlvr_sweeps.reporting.tracking.tracker import Facts, Tracker
from rlvr_sweeps.reporting.tracking.trackio_tracker import TrackioTracker
from rlvr_sweeps.reporting.tracking.wandb_tracker import WandbTracker
from rlvr_sweeps.runs.directory import Run

TRACKERS: dict[str, type[Tracker]] = {
    "wandb": WandbTracker,
    "tensorboard": TensorboardTracker,
    "trackio": TrackioTracker,
}
POLL_S = 2.0
MAX_SAMPLES = 1000  # the last completions of rollouts.jsonl that a tracker gets as a table
GRACE_S = 30.0  # added to the SDK's own time-outs, which it may exceed
AGAIN_S = 5.0  # after which the alarm rings again, because an SDK may catch the first TimeoutError and block again


class Mirror:
    """One run at one tracker and the run directory that it copies."""

    def __init__(self, task: Task) -> None:
        self.task, self.tracking = task, task.tracking
        self.run = Run(Path(task.run))
        self.cfg = self.run.config()
        self.folder, self.record_path = self.run.tracker_path(task.tracker), self.run.tracker_record_path(task.tracker)
        self.tracker = TRACKERS[task.tracker](Facts(self.run, self.cfg, task.tracking, task.parent))
        self.sent = {STEP: 0, REACH_STEP: 0}
        self.summary_digest = ""  # of the summary that the tracker has
        self.is_open = False
        self.confirmed = False  # whether the tracker has all rows and the summary

    def work(self) -> None:
        """Open the run, send rows until the stage ends, and finish; raises TimeoutError and what the SDK raises."""
        self.folder.mkdir(exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            patience_s = self.tracking["finish_timeout_s"]
            limit(self.tracking["init_timeout_s"] + patience_s)
            if not try_lock(lock.fileno(), fcntl.LOCK_EX, patience_s):  # the previous stage's mirror may still be sending
                raise TimeoutError("another mirror of this run is still running")
            record = self.record()
            self.sent, self.summary_digest = self.tracker.begin(record), record.get("summary", "")
            self.is_open = True
            self.note()
            self.send_rows()
            remove_limit()
            outcome = self.follow() if self.task.parent else "done"
            limit(2 * patience_s)
            self.end(outcome)
            remove_limit()

    def record(self) -> dict[str, Any]:
        """Return the content of the mirror file; empty where it is missing or cannot be read."""
        try:
            return read_object(self.record_path) or {}
        except Damaged:
            return {}

    def follow(self) -> str:
        """Send rows until the stage ends; return its outcome (`done`, `saved`, `failed`), or `gone` if it ended without one."""
        while True:
            ready = select.select([sys.stdin], [], [], POLL_S)[0]
            outcome = (sys.stdin.readline().strip() or "gone") if ready else ""
            if not outcome and os.getppid() != self.task.parent:
                outcome = "gone"
            self.send_rows()
            if outcome:
                return outcome

    def send_rows(self) -> None:
        """Send every complete row that the tracker lacks."""
        before = dict(self.sent)
        reaches = [reach_point(row) for row in read_rows(self.run.reach_path, "step", "reach")]
        for axis, points in ((STEP, [step_point(row) for row in self.steps()]), (REACH_STEP, reaches)):
            for values in points:
                if values[axis] > self.sent[axis]:
                    self.tracker.log(axis, values)
                    self.sent[axis] = values[axis]
        self.tracker.flush()
        if self.sent != before:
            self.note()

    def steps(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl; before training truncates it to its checkpoint, only those that it keeps."""
        rows = read_rows(self.run.metrics_path, "step")
        if rows and self.run.metrics_path.stat().st_ino == self.task.rewritten:
            return [row for row in rows if row["step"] <= self.task.last_kept_step]
        return rows

    def end(self, outcome: str) -> None:
        """Send the summary, the tables and the files of a completed stage, then finish the run at the tracker."""
        summary: dict[str, Any] = read_object(self.run.summary_path) or {}
        digest = text_digest(json.dumps(summary))
        if outcome == "done" and summary and (self.tracker.is_complete_each_time or digest != self.summary_digest):
            self.tracker.log_table(self.sent[STEP], "table/benchmarks", *benchmark_rows(self.cfg, summary))
            self.tracker.log_summary(self.sent[STEP], summary)
            if samples := read_rows(self.run.rollouts_path)[-MAX_SAMPLES:]:
                self.tracker.log_table(self.sent[STEP], "table/training_samples", *sample_rows(samples))
            self.summary_digest = digest
        self.tracker.finish(outcome, self.run.small_files if outcome == "done" else [])
        if outcome == "done":
            lack = self.tracker.missing(self.sent, summary)
            self.confirmed = lack == ""
            if lack:
                warn(self.task.tracker, f"{lack}; {self.tracker.remedy}")
        self.note(outcome)

    def note(self, outcome: str = "") -> None:
        """Write the mode, the address and the last sent steps to the mirror file."""
        state = {"sent": self.sent, "summary": self.summary_digest, "ended": outcome, "confirmed": self.confirmed}
        write_json(self.record_path, self.tracker.connection() | state)


def limit(seconds: float) -> None:
    """Set an alarm that interrupts a blocked call after `seconds` and GRACE_S, and then every AGAIN_S."""
    signal.setitimer(signal.ITIMER_REAL, seconds + GRACE_S, AGAIN_S)


def remove_limit() -> None:
    """Switch the alarm off."""
    signal.setitimer(signal.ITIMER_REAL, 0.0)


def warn(tracker: str, text: str) -> None:
    """Print one line into the stage's log."""
    print(f"{TITLES[tracker]}: {text}", file=sys.__stdout__, flush=True)


def main(task: Task) -> None:
    """Mirror one run; after an error before the W&B run was open, restart offline."""
    run = Run(Path(task.run))
    signal.signal(signal.SIGALRM, raise_timeout)
    mirror = Mirror(task)
    try:
        with redirect_stdout(sys.stderr):  # what an SDK prints belongs into the mirror's log, not into the stage's
            mirror.work()
    except Exception as error:
        remove_limit()
        restarts = task.tracker == "wandb" and task.tracking["mode"] != "offline" and not mirror.is_open
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        rest = f"{'offline' if restarts else 'the mirror is off'} from here on; {mirror.tracker.remedy}"
        warn(task.tracker, f"{message}: {rest}")
        note_error(run, task.tracker, message)
        if restarts:
            os.execv(sys.executable, command(replace(task, tracking=task.tracking | {"mode": "offline"})))
        os._exit(1)  # skip the SDK's exit handlers, which would wait for the server


def note_error(run: Run, tracker: str, message: str) -> None:
    """Write the error to the mirror file, if its folder can be written; the steps that were sent are kept."""
    path = run.tracker_record_path(tracker)
    try:
        record = read_object(path) or {}
    except Damaged:
        record = {}
    kept = {key: record[key] for key in ("sent", "summary") if key in record}
    try:
        write_json(path, kept | {"mode": "off", "warning": message})
    except OSError as error:
        print(error, file=sys.stderr)


def raise_timeout(*_: object) -> None:
    """Raise TimeoutError (the handler of SIGALRM)."""
    raise TimeoutError("the tracker does not return")


if __name__ == "__main__":
    main(Task(**json.loads(sys.argv[1])))
