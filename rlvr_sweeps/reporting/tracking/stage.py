"""Start the mirror processes of a stage, one per tracker, send them its outcome, and wait for them within a time limit."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import trackers_of
from rlvr_sweeps.errors import Stopped
from rlvr_sweeps.reporting.tracking.names import TITLES
from rlvr_sweeps.runs.checkpoints import latest_complete_checkpoint, step_of
from rlvr_sweeps.runs.directory import Run


@dataclass(frozen=True)
class Task:
    """The arguments of one mirror process."""

    run: str
    tracking: dict[str, Any]  # with the keys of TrackingConf
    parent: int  # pid of the stage's process; 0: send the existing rows, then exit
    rewritten: int  # inode of a metrics.jsonl that training will truncate to its checkpoint; 0 without one
    last_kept_step: int  # last step of that file that training will keep
    tracker: str = "wandb"  # a key of mirror.TRACKERS


def command(task: Task) -> list[str]:
    """Return the command line of a mirror process."""
    return [sys.executable, "-m", "rlvr_sweeps.reporting.tracking.mirror", json.dumps(asdict(task))]


@contextmanager
def mirrored(run: Run, cfg: Resolved, is_leader: bool) -> Iterator[None]:
    """Mirror the run to its trackers inside the context, if this is the leading process of its stage.

    A completed stage waits up to `tracking.finish_timeout_s` for the last rows to be sent, for all trackers together; an
    interrupted one does not wait.
    """
    mirrors = start_all(run, cfg) if is_leader else {}
    if not mirrors:
        yield
        return
    outcome, patience_s = "failed", cfg["tracking"]["finish_timeout_s"]
    try:
        yield
        outcome = "done"
    except Stopped:
        outcome, patience_s = "saved", 0.0
        raise
    finally:
        for mirror in mirrors.values():
            send_outcome(mirror, outcome)
        wait_for(mirrors, patience_s)


def start_all(run: Run, cfg: Resolved) -> dict[str, subprocess.Popen[str]]:
    """Start a mirror for each tracker of the run, and return those that started by the trackers' names."""
    mirrors = {}
    for tracker in trackers_of(cfg):
        try:
            mirrors[tracker] = start(run, cfg, tracker)
        except OSError as error:
            tell(tracker, f"{error}: the mirror is off; all numbers are in the run directory")
    return mirrors


def start(run: Run, cfg: Resolved, tracker: str) -> subprocess.Popen[str]:
    """Start a mirror in its own session, so that signals to the stage's processes do not reach it, and return it."""
    path = run.metrics_path
    rewritten = path.stat().st_ino if path.exists() and not run.is_done("train", cfg) else 0
    last_kept_step = step_of(latest_complete_checkpoint(run.checkpoints_path))
    task = Task(str(run.path), cfg["tracking"], os.getpid(), rewritten, last_kept_step, tracker)
    log = run.log_path(tracker)
    log.parent.mkdir(exist_ok=True)
    with log.open("a") as output:
        return subprocess.Popen(command(task), stdin=subprocess.PIPE, stderr=output, start_new_session=True, text=True)


def send_outcome(mirror: subprocess.Popen[str], outcome: str) -> None:
    """Send the stage's outcome; a mirror that has already ended does not fail the stage."""
    assert mirror.stdin
    with suppress(BrokenPipeError):  # communicate() with a zero timeout would not send the outcome
        mirror.stdin.write(f"{outcome}\n")
        mirror.stdin.close()


def wait_for(mirrors: dict[str, subprocess.Popen[str]], patience_s: float) -> None:
    """Wait until all mirrors have ended, together `patience_s` at most; a mirror that needs longer continues."""
    deadline = time.monotonic() + patience_s
    for tracker, mirror in mirrors.items():
        try:
            mirror.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            tell(tracker, f"the mirror is still sending after {patience_s:.0f} s; it continues in the background")


def tell(tracker: str, text: str) -> None:
    """Print one line to the stage's log."""
    print(f"{TITLES[tracker]}: {text}", file=sys.stderr, flush=True)
