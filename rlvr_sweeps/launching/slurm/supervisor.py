"""The supervisor of a stage in a Slurm job: starts the stage as a child process, and retries, requeues or fails the job.

Signals: SIGUSR2 comes near the time limit and before a preemption that gives notice; SIGTERM comes with scancel and other
preemptions. Under proctrack/linuxproc every process of the job receives them, under proctrack/cgroup only this one. Therefore
the child ignores both, and the supervisor requests a stop by writing the file `stop` with a deadline: the trainer saves at the
end of its step, or at once where the step would not end in time, on all ranks, and rank 0 writes the attempt's number to
saved.json. That file decides whether the checkpoint is usable, not the exit code, since ranks may abort while they exit. After
SIGUSR2 the job is requeued, at the deadline also without an answer of the trainer; after SIGTERM Slurm decides.

Attempts: each attempt writes its number to attempt.json. A trainer of an older attempt that still runs (its node was cut off,
or its supervisor was killed) reads a number other than its own at its next step, and exits without writing.

The supervisor imports no torch.
"""

import contextlib
import ctypes
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_object, read_rows, write_json, write_text
from rlvr_sweeps.launching.slurm import queue
from rlvr_sweeps.launching.stages import (
    ELSEWHERE,
    PR_SET_PDEATHSIG,
    SINGLE_NODE,
    process_environment,
    record_failure,
    reserve_space,
    torchrun_command,
)
from rlvr_sweeps.launching.threads import THREAD_VARIABLES, thread_count
from rlvr_sweeps.runs.checkpoints import latest_complete_checkpoint, step_of
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.failures import reduce_batch_after_oom, transient_reason

HEARTBEAT_S = 5.0
RETRY_TIMEOUT_S = 60.0  # for the first node to retry a stage that another node saw fail
REQUEUE_S = 15.0  # of the notice before the time limit, for ending the trainer and requeueing the job
KILL_WAIT_S = 25.0  # Slurm's KillWait, 30 s by default, less a margin: between SIGTERM and SIGKILL
EARLY_S = 90.0  # before its time that Slurm may send the notice, with a margin; an earlier SIGUSR2 is a preemption
REQUEUES_WITHOUT_A_STEP = 3  # after so many in a row the time limit is too short for a single step
CLAIM_TIMEOUT_S = 180.0  # for an older attempt to exit: one of its steps, or the half minute until Slurm gives up a node


class RunError(RuntimeError):
    """The stage failed; submitit ends the job as FAILED, with this message in its log."""


@dataclass(frozen=True)
class StageTask:
    """One stage of one run, as submitit pickles it: names and numbers, no configuration and no code."""

    run: str
    stage: str
    processes: int  # per node
    retries: int  # of transient failures, within one submission
    notice_s: float = 120.0  # between SIGUSR2 and the time limit

    def checkpoint(self, *_: Any) -> Any:
        """Return this task for resubmission; submitit calls it on a signal that precedes the supervisor's signal handlers."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def __call__(self) -> str:
        import submitit

        run = Run(Path(self.run))
        try:
            outcome = Supervisor(self, submitit.JobEnvironment()).supervise()
            analyse_too = self.stage == "evaluate" and "analyse" in run.stages(run.config())
            if analyse_too and submitit.JobEnvironment().global_rank == 0:  # takes minutes, on the evaluation's first node
                outcome = Supervisor(replace(self, stage="analyse"), submitit.JobEnvironment()).supervise()
            return outcome
        except (OSError, Refused) as error:  # the disk is full, the folder is gone, or a file is damaged
            if not run.failure_path.exists():
                record_failure(run, self.stage, f"{type(error).__name__}: {error}")
            raise RunError(f"{run.name}: {error}") from error


class Supervisor:
    """One attempt at a stage, on one node of the job; the supervisor of the first node decides for all nodes."""

    def __init__(self, task: StageTask, environment: Any) -> None:
        self.task, self.environment = task, environment
        self.run = Run(Path(task.run))
        self.is_first = environment.global_rank == 0
        self.job = str(environment.job_id)  # array_task; the raw id of an array's last task is the id of the whole array
        self.restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        self.stop_signal: str | None = None  # the first one received
        self.deadline = math.inf  # after SIGUSR2: when the job must be requeued, whatever the child does
        self.attempt, self.log_start = "", 0
        self.start = time.time()
        self.child: subprocess.Popen[bytes] | None = None

    def supervise(self) -> str:
        """Run the stage until it is done and return how it ended; exit after a signal, raise RunError after a failure."""
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self.on_signal)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)
        if not self.is_first:
            return self.follow_first_node()
        cfg = self.run.config()
        self.start_attempt()
        with self.run.claim(CLAIM_TIMEOUT_S) as claimed:
            if not claimed:
                raise RunError(
                    f"{self.run.name} is locked by another process, which did not exit within {CLAIM_TIMEOUT_S:.0f} s. See its "
                    "attempts.jsonl for the process."
                )
            if self.run.is_done(self.task.stage, cfg):
                return "already done"
            transient_failures = 0
            while True:
                status = self.run_child()
                if self.superseded():
                    sys.exit(ELSEWHERE)
                if self.run.is_done(self.task.stage, cfg):
                    self.run.log_event("done", stage=self.task.stage, job=self.job)
                    return "done"
                if self.stop_signal:
                    self.requeue_or_exit()
                why = reduce_batch_after_oom(self.run, self.task.stage, self.log_start)
                if why is None:  # transient failures are counted; reductions of the batch end at one completion anyway
                    transient_failures += 1
                    why = transient_reason(status, self.run.log_path(self.task.stage), self.log_start)
                if why is None or transient_failures > self.task.retries:
                    self.fail_job(status)
                self.run.failure_path.unlink(missing_ok=True)  # a retried failure is not the run's failure
                self.run.log_event("again", stage=self.task.stage, why=why)

    def start_attempt(self) -> None:
        """Write this attempt's number, which stops an older attempt from writing, and log its start."""
        self.run.stop_path.unlink(missing_ok=True)
        self.run.failure_path.unlink(missing_ok=True)
        self.run.phase_path.unlink(missing_ok=True)
        number = (read_object(self.run.attempt_path, "attempt") or {"attempt": 0})["attempt"] + 1
        self.attempt = str(number)
        reserve_space(self.run)
        write_json(self.run.attempt_path, {"attempt": number, "job": self.job, "restarts": self.restarts})
        self.run.log_event(
            "start", stage=self.task.stage, job=self.job, node=socket.gethostname(), attempt=number, restarts=self.restarts,
            node_name=os.environ.get("SLURMD_NODENAME"), gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
        )  # fmt: skip
        name = f"{self.run.name} {self.task.stage}"
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # only a name for squeue; a container may lack scontrol
            subprocess.run(["scontrol", "update", f"JobId={self.job}", f"JobName={name}"], capture_output=True, timeout=10)
        self.write_heartbeat()

    def follow_first_node(self) -> str:
        """On another node than the first: join the first node's attempt, and start the stage again whenever it does."""
        deadline = time.monotonic() + CLAIM_TIMEOUT_S
        while True:
            attempt = read_object(self.run.attempt_path, "attempt") or {}
            if (attempt.get("job"), attempt.get("restarts")) == (self.job, self.restarts):
                break
            if time.monotonic() > deadline:
                raise RunError(f"{self.run.name}: the first node of job {self.job} did not start its attempt")
            time.sleep(0.2)
        self.attempt = str(attempt["attempt"])
        retries = self.retry_count()
        while self.run_child() and not (self.stop_signal or self.run.stop_path.exists()):
            deadline = time.monotonic() + RETRY_TIMEOUT_S  # the first node decides whether to retry
            while self.retry_count() == retries:
                if time.monotonic() > deadline:
                    sys.exit(1)
                time.sleep(0.2)
            retries = self.retry_count()
        return "followed"

    def retry_count(self) -> int:
        """Return how often this run's stages were started again within their jobs, over all attempts."""
        return sum(row["event"] == "again" for row in read_rows(self.run.attempts_path, "event"))

    def on_signal(self, number: int, _: Any) -> None:
        """Request a stop from the child. Only writes a file and sends a signal, since it may interrupt any other code."""
        self.stop_signal = self.stop_signal or signal.Signals(number).name
        patience_s = max(self.task.notice_s - REQUEUE_S, 1.0) if number == signal.SIGUSR2 else KILL_WAIT_S
        deadline = time.time() + patience_s
        if number == signal.SIGUSR2:
            self.deadline = min(self.deadline, deadline)
        try:
            write_json(self.run.stop_path, {"signal": self.stop_signal, "deadline": deadline})
        except OSError:  # a full disk: Slurm ends the job anyway
            return
        if self.task.stage != "train" and self.child:  # safe: samples are appended to their files one batch at a time
            with contextlib.suppress(ProcessLookupError):  # the child has ended, for example after an earlier signal
                os.killpg(self.child.pid, signal.SIGKILL)

    def run_child(self) -> int:
        """Run the stage in a child process with a session of its own; returns its exit code, negative for a signal."""
        nodes, retries = int(self.environment.num_nodes), self.retry_count()
        if nodes * self.task.processes > 1 and self.task.stage != "analyse":
            rendezvous = self.rendezvous_options() if nodes > 1 else SINGLE_NODE
            command = torchrun_command(self.task.stage, self.run, self.task.processes, rendezvous)
        else:
            command = [sys.executable, "-m", "rlvr_sweeps.launching.stages", self.task.stage, str(self.run.path)]
        environment = process_environment(os.environ) | {"RLVR_ATTEMPT": self.attempt}
        if not environment.get("CUDA_VISIBLE_DEVICES"):
            cores = int(os.environ.get("SLURM_CPUS_PER_TASK", 1))
            environment |= dict.fromkeys(THREAD_VARIABLES, str(thread_count(self.run, self.run.config(), cores)))
        libc = ctypes.CDLL(None)

        def prepare_child() -> None:
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # ignored signals stay ignored after exec, in all descendants
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        log = self.run.log_path(self.task.stage if self.is_first else f"{self.task.stage}.{self.environment.node}")
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            self.log_start = output.tell()
            self.child = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=prepare_child,
                start_new_session=True,
            )
        while True:
            try:
                return self.child.wait(timeout=HEARTBEAT_S)
            except subprocess.TimeoutExpired:
                # A child of an older attempt, or of an earlier try of the first node, may wait for ever.
                is_late = time.time() > self.deadline
                if is_late or self.superseded() or (not self.is_first and self.retry_count() != retries):
                    os.killpg(self.child.pid, signal.SIGKILL)
                else:
                    self.write_heartbeat()

    def rendezvous_options(self) -> list[str]:
        """Return torchrun's options for meeting the other nodes; each retry takes another port, in case one was taken."""
        port = 20_000 + (int(os.environ["SLURM_JOB_ID"]) + 1_009 * self.retry_count()) % 30_000
        nodes, rank, first_host = self.environment.num_nodes, self.environment.node, self.environment.hostnames[0]
        return [f"--nnodes={nodes}", f"--node-rank={rank}", f"--master-addr={first_host}", f"--master-port={port}"]

    def superseded(self) -> bool:
        """Return whether a newer attempt has started."""
        return str((read_object(self.run.attempt_path) or {}).get("attempt", self.attempt)) != self.attempt

    def write_heartbeat(self) -> None:
        """Update the heartbeat file of a running job; `rlvr status` shows its age."""
        if self.is_first:
            with contextlib.suppress(OSError):  # on a full disk the stage's own error is the better message
                write_text(self.run.heartbeat_path, self.job)

    def requeue_or_exit(self) -> None:
        """After SIGUSR2 requeue the job; after SIGTERM exit. Raise RunError where requeues bring no step any more."""
        saved = self.task.stage != "train" or self.run.saved_attempt() == int(self.attempt)
        self.run.log_event("stopped", stage=self.task.stage, signal=self.stop_signal, saved=saved, job=self.job)
        if self.stop_signal == "SIGUSR2":
            step = step_of(latest_complete_checkpoint(self.run.checkpoints_path)) if self.task.stage == "train" else None
            at_limit = self.task.stage == "train" and self.is_at_time_limit()
            if at_limit:
                self.refuse_endless_requeues(step)
            self.run.log_event("requeue", stage=self.task.stage, job=self.job, step=step, at_limit=at_limit)
            self.requeue()
        sys.exit(128 + signal.SIGTERM)

    def requeue(self) -> None:
        """Requeue the job by scontrol; without it, as in a container, by the batch script, after this process has ended.

        Raises RunError where Slurm refuses.
        """
        if shutil.which("scontrol"):
            try:
                queue.slurm_output("scontrol", "requeue", self.job)
                time.sleep(60)  # Slurm ends this process meanwhile
            except Refused as refusal:
                raise RunError(f"{self.run.name} could not be requeued: {refusal}") from None
        elif folder := os.environ.get("SUBMITIT_FOLDER"):
            write_text(Path(folder) / f"{os.environ['SLURM_JOB_ID']}.requeue", self.run.name)

    def is_at_time_limit(self) -> bool:
        """Return whether the training's job is so near its time limit that its notice is due; otherwise it is preempted."""
        limit_s = 60 * self.run.config()["cluster"]["train"]["timeout_min"]
        return time.time() - self.start > limit_s - self.task.notice_s - EARLY_S

    def refuse_endless_requeues(self, step: int | None) -> None:
        """Raise RunError, with the failure recorded, where the last time limits and this one were at one and the same step."""
        events = read_rows(self.run.attempts_path, "event")
        before = [row.get("step") for row in events if row["event"] == "requeue" and row.get("at_limit")]
        if step is None or [*before[1 - REQUEUES_WITHOUT_A_STEP :], step] != [step] * REQUEUES_WITHOUT_A_STEP:
            return
        record_failure(
            self.run, self.task.stage,
            f"{REQUEUES_WITHOUT_A_STEP} jobs reached their time limit after step {step}, without another checkpoint: it is too "
            "short for a step with its start and checkpoint. Raise cluster.train.timeout_min, or make a step shorter (more "
            "GPUs, a smaller batch_size).",
        )  # fmt: skip
        self.fail_job(0)

    def fail_job(self, status: int) -> None:
        """Record the failure unless the stage did, and raise RunError with its error and traceback."""
        failure = self.run.failure()
        if failure is None:
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
            log = self.run.log_path(self.task.stage)
            record_failure(self.run, self.task.stage, f"the stage's process {how} without an error message. Its output: {log}")
            failure = self.run.failure() or {"error": how}
        self.run.log_event("failed", stage=self.task.stage, job=self.job)
        raise RunError(f"{self.run.name}: {failure['error']}\n{failure.get('traceback', '')}")
