"""What a Slurm task runs: a supervisor without torch. It starts the stage as a child, watches it, and decides what follows.

Signals: USR2 comes near the time limit and before a preemption that gives notice; TERM with scancel and other preemptions.
Under proctrack/linuxproc every process of the job gets them, under proctrack/cgroup this one alone, so the child ignores both,
and is asked by a file: it saves at the end of its step, on all ranks, and rank 0 writes which attempt saved. That file decides,
not the exit code, since ranks may abort on their way out. After USR2 the job is requeued; after TERM Slurm does what it wants.

A new attempt writes its number. A trainer of an older attempt that lives on (its node was cut off, its supervisor killed) reads
another number than its own at its next step, and leaves without writing.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json, read_rows, write_json, write_text
from rlvr_sweeps.launching.slurm import queue
from rlvr_sweeps.launching.stages import (
    ELSEWHERE,
    ENVIRONMENT,
    PR_SET_PDEATHSIG,
    SINGLE_NODE,
    record_failure,
    reserve_space,
    torchrun_command,
)
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.failures import reduce_batch_after_oom, transient_reason

BEAT_S = 5.0
FOLLOW_S = 60.0  # for the first node to start again what a further node saw fail
PATIENCE_S = 180.0  # for an older attempt to leave: a step of it, or the half minute in which Slurm gives up on a node


class RunError(RuntimeError):
    """The stage failed: submitit makes the job FAILED of it, with this text."""


@dataclass(frozen=True)
class StageTask:
    """One stage of one run, as submitit pickles it: names and numbers, no configuration and no code."""

    run: str
    stage: str
    processes: int  # per node
    retries: int  # of transient failures, within one submission

    def checkpoint(self, *_: Any) -> Any:
        """Called by submitit where a signal comes before our own handlers are in place: the same again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def __call__(self) -> str:
        import submitit

        run = Run(Path(self.run))
        try:
            said = Supervisor(self, submitit.JobEnvironment()).work()
            wanted = self.stage == "evaluate" and "analyse" in run.stages(run.config())
            if wanted and submitit.JobEnvironment().global_rank == 0:  # minutes, on the node that the evaluation had
                said = Supervisor(replace(self, stage="analyse"), submitit.JobEnvironment()).work()
            return said
        except OSError as error:  # the disk is full, or the folder is gone
            if not run.failure_path.exists():
                record_failure(run, self.stage, f"{type(error).__name__}: {error}")
            raise RunError(f"{run.name}: {error}") from error


class Supervisor:
    """One attempt at a stage on this node; the first node leads."""

    def __init__(self, task: StageTask, environment: Any) -> None:
        self.task, self.environment = task, environment
        self.run = Run(Path(task.run))
        self.leads = environment.global_rank == 0
        self.job = str(environment.job_id)  # array_task: the raw id of an array's last task is the whole array's
        self.restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        self.asked: str | None = None  # the signal that came first
        self.attempt, self.log_start = "", 0
        self.child: subprocess.Popen[bytes] | None = None

    def work(self) -> str:
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self.on_signal)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)
        if not self.leads:
            return self.follow()
        cfg = self.run.config()
        self.begin()
        with self.run.claim(PATIENCE_S) as mine:
            if not mine:
                raise RunError(f"{self.run.name} is held by another process that did not leave within {PATIENCE_S:.0f} s")
            if self.run.is_done(self.task.stage, cfg):
                return "done before"
            again = 0
            while True:
                status = self.run_child()
                if self.superseded():
                    sys.exit(ELSEWHERE)
                if self.run.is_done(self.task.stage, cfg):
                    self.run.log_event("done", stage=self.task.stage, job=self.job)
                    return "done"
                if self.asked:
                    self.leave()
                why = reduce_batch_after_oom(self.run, self.task.stage, self.log_start)
                if why is None:  # what passes by itself is tried a few times; the other ends at one completion
                    again, why = again + 1, transient_reason(status, self.run.log_path(self.task.stage), self.log_start)
                if why is None or again > self.task.retries:
                    self.give_up(status)
                self.run.failure_path.unlink(missing_ok=True)  # what passed is no failure
                self.run.log_event("again", stage=self.task.stage, why=why)

    def begin(self) -> None:
        """Number this attempt: from now on an older one has lost its right to write."""
        self.run.stop_path.unlink(missing_ok=True)
        self.run.failure_path.unlink(missing_ok=True)
        number = (read_json(self.run.attempt_path) or {"attempt": 0})["attempt"] + 1
        self.attempt = str(number)
        reserve_space(self.run)
        write_json(self.run.attempt_path, {"attempt": number, "job": self.job, "restarts": self.restarts})
        self.run.log_event(
            "start", stage=self.task.stage, job=self.job, node=socket.gethostname(), attempt=number, restarts=self.restarts,
            node_name=os.environ.get("SLURMD_NODENAME"), gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
        )  # fmt: skip
        name = f"{self.run.name} {self.task.stage}"
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # a name for people; a container may hold no scontrol
            subprocess.run(["scontrol", "update", f"JobId={self.job}", f"JobName={name}"], capture_output=True, timeout=10)
        self.beat()

    def follow(self) -> str:
        """On a further node: join the attempt that the first node has begun."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            begun = read_json(self.run.attempt_path) or {}
            if (begun.get("job"), begun.get("restarts")) == (self.job, self.restarts):
                break
            if time.monotonic() > deadline:
                raise RunError("the first node of this job did not begin")
            time.sleep(0.2)
        self.attempt = str(begun["attempt"])
        tries = self.tries()
        while self.run_child() and not (self.asked or self.run.stop_path.exists()):
            deadline = time.monotonic() + FOLLOW_S  # the first node decides whether it is worth another try
            while self.tries() == tries:
                if time.monotonic() > deadline:
                    sys.exit(1)
                time.sleep(0.2)
            tries = self.tries()
        return "followed"

    def tries(self) -> int:
        """How often the first nodes of this run have started a stage again after a transient failure."""
        return sum(row["event"] == "again" for row in read_rows(self.run.attempts_path))

    def on_signal(self, number: int, _: Any) -> None:
        """Ask the child to stop; files and nothing else, since this may interrupt anything."""
        self.asked = self.asked or signal.Signals(number).name
        try:
            self.run.stop_path.write_text(self.asked)
        except OSError:  # a full disk: Slurm will end us anyway
            return
        if self.task.stage != "train" and self.child:  # its samples are written as they come
            with contextlib.suppress(ProcessLookupError):  # a second signal finds it gone
                os.killpg(self.child.pid, signal.SIGKILL)

    def run_child(self) -> int:
        """The stage in a child of its own session; returns its exit code, negative for a signal."""
        nodes, tries = int(self.environment.num_nodes), self.tries()
        if nodes * self.task.processes > 1 and self.task.stage != "analyse":
            started = torchrun_command(
                self.task.stage, self.run, self.task.processes, self.meet() if nodes > 1 else SINGLE_NODE
            )
        else:
            started = [sys.executable, "-m", "rlvr_sweeps.launching.stages", self.task.stage, str(self.run.path)]
        ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        environment = {key: value for key, value in os.environ.items() if key not in ours}
        environment |= ENVIRONMENT | {"RLVR_ATTEMPT": self.attempt}
        libc = ctypes.CDLL(None)

        def before() -> None:
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # ignored signals stay ignored through exec, in all its children
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        log = self.run.log_path(self.task.stage if self.leads else f"{self.task.stage}.{self.environment.node}")
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            self.log_start = output.tell()
            self.child = subprocess.Popen(
                started, stdout=output, stderr=subprocess.STDOUT, env=environment, preexec_fn=before, start_new_session=True
            )
        while True:
            try:
                return self.child.wait(timeout=BEAT_S)
            except subprocess.TimeoutExpired:
                if self.superseded() or (not self.leads and self.tries() != tries):  # of the past, maybe waiting for ever
                    os.killpg(self.child.pid, signal.SIGKILL)
                else:
                    self.beat()

    def meet(self) -> list[str]:
        """How torchrun's processes find each other across nodes: another port at each try, should one be taken."""
        port = 20_000 + (int(os.environ["SLURM_JOB_ID"]) + 1_009 * self.tries()) % 30_000
        nodes, rank, lead = self.environment.num_nodes, self.environment.node, self.environment.hostnames[0]
        return [f"--nnodes={nodes}", f"--node-rank={rank}", f"--master-addr={lead}", f"--master-port={port}"]

    def superseded(self) -> bool:
        """Whether a newer attempt has begun."""
        return str((read_json(self.run.attempt_path) or {}).get("attempt", self.attempt)) != self.attempt

    def beat(self) -> None:
        """Say that the job lives: `rlvr status` shows the age of this file."""
        if self.leads:
            with contextlib.suppress(OSError):  # what a full disk does to the stage is the better message
                write_text(self.run.heartbeat_path, self.job)

    def leave(self) -> None:
        """After a signal: back into the queue if there was notice, else out."""
        saved = self.task.stage != "train" or read_json(self.run.saved_path) == int(self.attempt)
        self.run.log_event("stopped", stage=self.task.stage, signal=self.asked, saved=saved, job=self.job)
        if self.asked == "SIGUSR2":
            self.run.log_event("requeue", stage=self.task.stage, job=self.job)
            try:
                queue.slurm_output("scontrol", "requeue", self.job)
                time.sleep(60)  # Slurm ends us now
            except Refused as refusal:
                raise RunError(f"{self.run.name} could not be requeued: {refusal}") from None
        sys.exit(128 + signal.SIGTERM)

    def give_up(self, status: int) -> None:
        failure = read_json(self.run.failure_path)
        if failure is None:
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
            record_failure(
                self.run, self.task.stage, f"the stage's process {how} without saying why: {self.run.log_path(self.task.stage)}"
            )
            failure = read_json(self.run.failure_path)
        self.run.log_event("failed", stage=self.task.stage, job=self.job)
        raise RunError(f"{self.run.name}: {failure['error']}\n{failure.get('traceback', '')}")
