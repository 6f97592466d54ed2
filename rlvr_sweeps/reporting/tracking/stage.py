"""A stage's side of the W&B mirror: start its process, tell it how the stage ended, wait for it no longer than is stated."""

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
    """What one mirror process is asked."""

    run: str
    tracking: dict[str, Any]  # as conf/tracking/wandb.yaml has it
    parent: int  # the stage's process; 0: mirror what is there, and end
    rewritten: int  # inode of a metrics.jsonl that training will cut back, 0 where there is none
    known: int  # the step to which it will


def command(task: Task) -> list[str]:
    return [sys.executable, "-m", "rlvr_sweeps.reporting.tracking.mirror", json.dumps(asdict(task))]


@contextmanager
def mirrored(run: Run, cfg: Resolved, leads: bool) -> Iterator[None]:
    """Mirror the run to W&B while inside, where that is asked for and this process leads its stage.

    A stage that is done waits for the last rows, `tracking.finish_timeout_s` at most; one that must leave does not wait.
    """
    if cfg["tracking"]["name"] != "wandb" or not leads:
        yield
        return
    try:
        mirror = start(run, cfg)
    except OSError as error:
        print(f"W&B: {error}: the mirror is off; every number is in the files", file=sys.stderr, flush=True)
        yield
        return
    word, patience_s = "failed", cfg["tracking"]["finish_timeout_s"]
    try:
        yield
        word = "done"
    except Stopped:
        word, patience_s = "saved", 0.0
        raise
    finally:
        tell(mirror, word, patience_s)


def start(run: Run, cfg: Resolved) -> subprocess.Popen[str]:
    """A mirror in a session of its own: signals for the stage's processes are not for it, and it outlives them by seconds."""
    path = run.metrics_path
    rewritten = path.stat().st_ino if path.exists() and not run.is_done("train", cfg) else 0
    known = step_of(latest_complete_checkpoint(run.checkpoints_path))
    task = Task(str(run.path), cfg["tracking"], os.getpid(), rewritten, known)
    log = run.log_path("wandb")
    log.parent.mkdir(exist_ok=True)
    with log.open("a") as output:
        return subprocess.Popen(command(task), stdin=subprocess.PIPE, stderr=output, start_new_session=True, text=True)


def tell(mirror: subprocess.Popen[str], word: str, patience_s: float) -> None:
    """Say how the stage ended. A mirror that has ended before, or does not end, is no failure of the stage."""
    assert mirror.stdin
    with suppress(BrokenPipeError):  # first the word, whatever the patience: communicate() would not send it within none
        mirror.stdin.write(f"{word}\n")
        mirror.stdin.close()
    try:
        mirror.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        print(f"W&B: the mirror is still sending after {patience_s:.0f} s and is left to itself", file=sys.stderr, flush=True)
