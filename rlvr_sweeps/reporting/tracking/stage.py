"""Start the W&B mirror process of a stage, send it the stage's outcome, and wait for it within a time limit."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.errors import Stopped
from rlvr_sweeps.runs.checkpoints import latest_complete_checkpoint, step_of
from rlvr_sweeps.runs.directory import Run


@dataclass(frozen=True)
class Task:
    """The arguments of one mirror process."""

    run: str
    tracking: dict[str, Any]  # with the keys of conf/tracking/wandb.yaml
    parent: int  # pid of the stage's process; 0: send the existing rows, then exit
    rewritten: int  # inode of a metrics.jsonl that training will truncate to its checkpoint; 0 without one
    last_kept_step: int  # last step of that file that training will keep


def command(task: Task) -> list[str]:
    """Return the command line of a mirror process."""
    return [sys.executable, "-m", "rlvr_sweeps.reporting.tracking.mirror", json.dumps(asdict(task))]


@contextmanager
def mirrored(run: Run, cfg: Resolved, is_leader: bool) -> Iterator[None]:
    """Mirror the run to W&B inside the context, if tracking=wandb and this is the leading process of its stage.

    A completed stage waits up to `tracking.finish_timeout_s` for the last rows to be sent; an interrupted one does not wait.
    """
    if cfg["tracking"]["name"] != "wandb" or not is_leader:
        yield
        return
    try:
        mirror = start(run, cfg)
    except OSError as error:
        print(f"W&B: {error}: the mirror is off; all numbers are in the run directory", file=sys.stderr, flush=True)
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
        send_outcome(mirror, outcome, patience_s)


def start(run: Run, cfg: Resolved) -> subprocess.Popen[str]:
    """Start a mirror in its own session, so that signals to the stage's processes do not reach it, and return it."""
    path = run.metrics_path
    rewritten = path.stat().st_ino if path.exists() and not run.is_done("train", cfg) else 0
    last_kept_step = step_of(latest_complete_checkpoint(run.checkpoints_path))
    task = Task(str(run.path), cfg["tracking"], os.getpid(), rewritten, last_kept_step)
    log = run.log_path("wandb")
    log.parent.mkdir(exist_ok=True)
    with log.open("a") as output:
        return subprocess.Popen(command(task), stdin=subprocess.PIPE, stderr=output, start_new_session=True, text=True)


def send_outcome(mirror: subprocess.Popen[str], outcome: str, patience_s: float) -> None:
    """Send the stage's outcome. A mirror that has already ended, or does not end in time, does not fail the stage."""
    assert mirror.stdin
    with suppress(BrokenPipeError):  # communicate() with a zero timeout would not send the outcome
        mirror.stdin.write(f"{outcome}\n")
        mirror.stdin.close()
    try:
        mirror.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        print(
            f"W&B: the mirror is still sending after {patience_s:.0f} s; it continues in the background",
            file=sys.stderr,
            flush=True,
        )
