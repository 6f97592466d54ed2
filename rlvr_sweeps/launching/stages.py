"""A run's stages in order: claim the run, skip what is done, start a process for each stage that is not, record how it ended.

This module and what it imports know nothing of torch: a stage's process does the heavy work.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.errors import Stopped, Superseded
from rlvr_sweeps.files import read_json, write_json
from rlvr_sweeps.reporting.tracking.stage import mirrored
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.failures import reduce_batch_after_oom, with_fitting_batch
from rlvr_sweeps.versions import refuse_unknown

StageRunner = Callable[[str, Run], int]  # (stage, run) -> the wait status of the process that did it
PR_SET_PDEATHSIG = 1
FAILED, ELSEWHERE, STOPPED = 1, 3, 4  # exit codes of a run's process, beside 0
SAVED = 5  # exit code of a stage that was asked to stop, and can go on where it is
RESERVED_BYTES = 64 * 1024  # bytes kept for failure.json, should the disk be full
SINGLE_NODE = ("--nnodes=1", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")  # on a port the system picks


def supervise(run: Run, start: StageRunner) -> int:
    """Bring a run to done; returns 0, or one of the codes above."""
    with run.claim() as mine:
        if not mine:
            return ELSEWHERE
        cfg = run.config()
        if all(run.is_done(stage, cfg) for stage in run.stages(cfg)):  # by another launch, since this one planned
            return ELSEWHERE
        run.failure_path.unlink(missing_ok=True)
        reserve_space(run)
        run.log_event("start")
        for stage in run.stages(cfg):
            if run.is_done(stage, cfg):
                continue
            status = run_with_smaller_batches(stage, run, start)
            if os.WIFSIGNALED(status):
                name = signal.Signals(os.WTERMSIG(status)).name
                run.log_event("stopped", stage=stage, signal=name)
                return STOPPED
            if os.waitstatus_to_exitcode(status) == SAVED:
                run.log_event("stopped", stage=stage, saved=True)
                return STOPPED
            if os.waitstatus_to_exitcode(status) or not run.is_done(stage, cfg):
                if read_json(run.failure_path) is None:
                    record_failure(run, stage, "the stage's process ended without finishing its work")
                run.log_event("failed", stage=stage)
                return FAILED
        run.log_event("done")
        return 0


def run_with_smaller_batches(stage: str, run: Run, start: StageRunner) -> int:
    """The wait status of a stage's process; a training without memory for its forward passes starts again with smaller."""
    while True:
        log = run.log_path(stage)
        since = log.stat().st_size if log.exists() else 0
        status = start(stage, run)
        decided = reduce_batch_after_oom(run, stage, since) if os.waitstatus_to_exitcode(status) > 0 else None
        if decided is None:
            return status
        run.failure_path.unlink(missing_ok=True)
        run.log_event("again", stage=stage, why=decided)


def process_count(cfg: Resolved, stage: str) -> int:
    """How many processes do a stage together: one per GPU, for training and for evaluation; one for the analysis."""
    return int(cfg["distributed"]["process_count"]) if stage != "analyse" else 1


def torchrun_command(stage: str, run: Run, count: int, meet: Sequence[str] = SINGLE_NODE) -> list[str]:
    """A stage as a command of `count` processes on this machine, by torchrun; `meet`: where it finds those of other nodes.

    accelerate launch would start the same torchrun; on machines without a GPU it starts a single process, and says nothing.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--signals-to-handle=SIGINT", f"--nproc-per-node={count}"]
    return [*torchrun, *meet, "--module", "rlvr_sweeps.launching.stages", stage, str(run.path)]


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that made it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def is_leader() -> bool:
    """Whether this is the only process of its stage, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def run_stage(stage: str, run: Run) -> None:
    """Do one stage, or this process's part of it, and mark it done; a failure is recorded with its traceback and raised on."""
    start = time.monotonic()
    try:
        cfg = run.config()
        refuse_unknown(cfg)
        with mirrored(run, cfg, is_leader()):
            stage_function(stage)(run, with_fitting_batch(run, cfg))
            if is_leader():
                run.finish(stage, cfg, time.monotonic() - start)
    except Stopped:
        sys.exit(SAVED)
    except Superseded as left:  # a newer attempt owns the run: not a word into its directory
        print(left, file=sys.stderr)
        sys.exit(ELSEWHERE)
    except Exception as error:
        if not run.failure_path.exists():  # the first of several processes knows the reason, the others miss it
            record_failure(run, stage, f"{type(error).__name__}: {error}", traceback.format_exc())
        raise


def stage_function(stage: str) -> Callable[..., None]:
    """The stage's function, imported when its process needs it."""
    if stage == "train":
        from rlvr_sweeps.training.train import train

        return train
    if stage == "evaluate":
        from rlvr_sweeps.evaluation.evaluate import evaluate

        return evaluate
    from rlvr_sweeps.evaluation.analyse import analyse

    return analyse


def reserve_space(run: Run) -> None:
    """Occupy what a failure's record needs, so that a full disk can be recorded on itself."""
    with contextlib.suppress(OSError):  # full already: the stage will say so
        run.room_path.write_bytes(bytes(RESERVED_BYTES))


def record_failure(run: Run, stage: str, error: str, trace: str = "") -> None:
    """Record why a stage ended."""
    facts = {"stage": stage, "error": error, "traceback": trace[-RESERVED_BYTES // 2 :], "time": time.time()}
    try:
        write_json(run.failure_path, facts)
    except OSError:
        run.room_path.unlink(missing_ok=True)
        write_json(run.failure_path, facts)


# One thread per run: runs share the cores, and results repeat bit for bit.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRL_EXPERIMENTAL_SILENCE": "1",
    "PYTHONUNBUFFERED": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # vLLM's engine stands in the process that feeds it
}  # fmt: skip


if __name__ == "__main__":  # one process of several, started by torchrun
    die_with_parent()
    run_stage(sys.argv[1], Run(Path(sys.argv[2])))
