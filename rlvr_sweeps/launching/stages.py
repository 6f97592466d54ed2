"""The stages of a run: their order, the process of each, its environment, and the record of how it ended.

    python -m rlvr_sweeps.launching.stages STAGE RUN_DIRECTORY

runs one stage; torchrun starts it once per process. `supervise` runs all stages of a run on this machine; on Slurm,
rlvr_sweeps.launching.slurm.supervisor does. The module imports no torch: a stage's own process imports it.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.errors import Refused, Stopped, Superseded
from rlvr_sweeps.files import write_json
from rlvr_sweeps.reporting.tracking.stage import mirrored
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.failures import reduce_batch_after_oom, with_fitting_batch
from rlvr_sweeps.versions import refuse_unknown

StageRunner = Callable[[str, Run], int]  # (stage, run) -> the wait status of the stage's process
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
FAILED, ELSEWHERE, STOPPED = 1, 3, 4  # exit codes of a run's process, beside 0; ELSEWHERE: another launch runs or finished it
SAVED = 5  # exit code of a stage that stopped on request and can be resumed
RESERVED_BYTES = 64 * 1024  # kept on the disk so that failure.json can be written when the disk is full
SINGLE_NODE = ("--nnodes=1", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")  # torchrun on a port that the system picks
ENVIRONMENT = {  # of every process of a run; one thread each, unless rlvr_sweeps.launching.threads gives it more
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRL_EXPERIMENTAL_SILENCE": "1",
    "PYTHONUNBUFFERED": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # vLLM's engine runs in the stage's own process
}  # fmt: skip
UNLESS_SET = {  # in the environment of the launch
    # For GPUs only: passes differ in length, and memory in segments that grow is not fragmented by them. vLLM 0.31 switches
    # this off while it allocates the memory that its sleep mode releases.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    # How often a thread of OpenMP looks whether the others are ready before it sleeps. libgomp's default is thirty times as
    # much: where other programs use the cores too, threads then spend their time slices on waiting (bench/threads.py).
    "GOMP_SPINCOUNT": "10000",
}
SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # submitit too


def process_environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a run's process: `own` with ENVIRONMENT over it and UNLESS_SET below it.

    The ranks and the port of another group of processes are left out: runs that had them would all listen on that port.
    """
    kept = {key: value for key, value in own.items() if key not in SET_BY_TORCHRUN}
    return UNLESS_SET | kept | ENVIRONMENT


def supervise(run: Run, start: StageRunner) -> int:
    """Run the stages that are not done, in order; returns 0, FAILED, ELSEWHERE or STOPPED.

    A damaged file, or a folder in its place, is recorded as the run's failure.
    """
    try:
        return run_stages(run, start)
    except (Refused, OSError) as error:
        record_failure(run, "start", f"{type(error).__name__}: {error}")
        return FAILED


def run_stages(run: Run, start: StageRunner) -> int:
    """Run the stages that are not done, in order; returns 0, FAILED, ELSEWHERE or STOPPED."""
    with run.claim() as claimed:
        if not claimed:
            return ELSEWHERE
        cfg = run.config()
        if all(run.is_done(stage, cfg) for stage in run.stages(cfg)):  # another launch finished it after this one planned
            return ELSEWHERE
        run.failure_path.unlink(missing_ok=True)
        run.phase_path.unlink(missing_ok=True)
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
            if not run.is_done(stage, cfg):  # not the exit code: ranks of a finished stage may abort while they exit
                if run.failure() is None:
                    record_failure(run, stage, "the stage's process ended without finishing its work")
                run.log_event("failed", stage=stage)
                return FAILED
        run.log_event("done")
        return 0


def run_with_smaller_batches(stage: str, run: Run, start: StageRunner) -> int:
    """Return the wait status of a stage's process; training that ran out of memory is restarted with smaller forward passes."""
    while True:
        log = run.log_path(stage)
        log_start = log.stat().st_size if log.exists() else 0
        status = start(stage, run)
        reduction = reduce_batch_after_oom(run, stage, log_start) if os.waitstatus_to_exitcode(status) > 0 else None
        if reduction is None:
            return status
        run.failure_path.unlink(missing_ok=True)
        run.log_event("again", stage=stage, why=reduction)


def process_count(cfg: Resolved, stage: str) -> int:
    """Return the number of processes of a stage: one per GPU for training and evaluation, one for the analysis."""
    return int(cfg["distributed"]["processes"]) if stage != "analyse" else 1


def torchrun_command(stage: str, run: Run, count: int, rendezvous: Sequence[str] = SINGLE_NODE) -> list[str]:
    """Return the torchrun command that starts `count` processes of a stage on this machine.

    `rendezvous`: torchrun's options for meeting the processes of other nodes. `accelerate launch` would call the same torchrun,
    but on a machine without a GPU it silently starts a single process.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--signals-to-handle=SIGINT", f"--nproc-per-node={count}"]
    return [*torchrun, *rendezvous, "--module", "rlvr_sweeps.launching.stages", stage, str(run.path)]


def die_with_parent() -> None:
    """Make the kernel kill this process when the thread that created it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def is_leader() -> bool:
    """Return whether this process has rank 0 among the processes of its stage."""
    return os.environ.get("RANK", "0") == "0"


def run_stage(stage: str, run: Run) -> None:
    """Run this process's part of a stage; rank 0 marks the stage done. Records an exception in failure.json and raises it.

    Exits with SAVED after a requested stop, and with ELSEWHERE where a newer attempt at the run has begun.
    """
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
    except Superseded as superseded:  # the run's directory belongs to the newer attempt: write nothing into it
        print(superseded, file=sys.stderr)
        sys.exit(ELSEWHERE)
    except Exception as error:
        if not run.failure_path.exists():  # the process that fails first records the cause; the others fail because of it
            record_failure(run, stage, f"{type(error).__name__}: {error}", traceback.format_exc())
        raise


def stage_function(stage: str) -> Callable[..., None]:
    """Return the function that runs a stage; imported here, in the stage's own process, since it imports torch."""
    if stage == "train":
        from rlvr_sweeps.training.train import train

        return train
    if stage == "evaluate":
        from rlvr_sweeps.evaluation.evaluate import evaluate

        return evaluate
    from rlvr_sweeps.evaluation.analyse import analyse

    return analyse


def reserve_space(run: Run) -> None:
    """Reserve disk space for failure.json, so that a full disk can be recorded as the failure."""
    with contextlib.suppress(OSError):  # the disk is full already: the stage will fail with that error
        run.room_path.write_bytes(bytes(RESERVED_BYTES))


def record_failure(run: Run, stage: str, error: str, trace: str = "") -> None:
    """Write failure.json; where the disk is full, free the reserved space first."""
    facts = {"stage": stage, "error": error, "traceback": trace[-RESERVED_BYTES // 2 :], "time": time.time()}
    try:
        write_json(run.failure_path, facts)
    except OSError:
        run.room_path.unlink(missing_ok=True)
        write_json(run.failure_path, facts)


if __name__ == "__main__":
    die_with_parent()
    run_stage(sys.argv[1], Run(Path(sys.argv[2])))
