"""A run's stages in order: claim the run, skip what is done, start a process for each stage that is not, record how it ended.

This module and what it imports know nothing of torch: a stage's process does the heavy work.
"""

import os
import signal
import time
import traceback
from collections.abc import Callable

from rlvr_sweeps.files import read_json, write_json
from rlvr_sweeps.run import Run

Start = Callable[[str, Run], int]  # (stage, run) -> the wait status of the process that did it
FAILED, ELSEWHERE, STOPPED = 1, 3, 4  # exit codes of a run's process, beside 0


def supervise(run: Run, start: Start) -> int:
    """Bring a run to done; returns 0, or one of the codes above."""
    with run.claim() as mine:
        if not mine:
            return ELSEWHERE
        cfg = run.config()
        run.failure_path.unlink(missing_ok=True)
        run.log_event("start")
        for stage in run.stages(cfg):
            if run.is_done(stage, cfg):
                continue
            status = start(stage, run)
            if os.WIFSIGNALED(status):
                name = signal.Signals(os.WTERMSIG(status)).name
                run.log_event("stopped", stage=stage, signal=name)
                return STOPPED
            if os.waitstatus_to_exitcode(status) or not run.is_done(stage, cfg):
                if read_json(run.failure_path) is None:
                    fail(run, stage, "the stage's process ended without finishing its work")
                run.log_event("failed", stage=stage)
                return FAILED
        run.log_event("done")
        return 0


def run_stage(stage: str, run: Run) -> None:
    """Do one stage in this process and mark it done; a failure is recorded with its traceback and raised on."""
    start = time.monotonic()
    try:
        cfg = run.config()
        work(stage)(run, cfg)
        run.finish(stage, cfg, time.monotonic() - start)
    except Exception as error:
        fail(run, stage, f"{type(error).__name__}: {error}", traceback.format_exc())
        raise


def work(stage: str) -> Callable[..., None]:
    """The stage's function, imported when its process needs it."""
    if stage == "train":
        from rlvr_sweeps.train import train

        return train
    from rlvr_sweeps.evaluate import evaluate

    return evaluate


def fail(run: Run, stage: str, error: str, trace: str = "") -> None:
    write_json(run.failure_path, {"stage": stage, "error": error, "traceback": trace, "time": time.time()})
