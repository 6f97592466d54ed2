"""Judge completions by a reward function in processes of its own (`reward_process.py`), with limits of time and memory.

Every completion is judged by a call of its own, so that its score depends on no other completion, on no batch size and on no
process. A call that hangs, or ends its process, costs the verdict on its completion, with the reason, and a new process. A
return that is not one finite number or None raises VerifierError. The functions work in a forked process, which starts its own.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Failure = Literal[
    "verifier timeout", "verifier out of memory", "verifier exception", "verifier crashed", "no score", "over budget"
]
PROCESS_COUNT = max(2, min(8, len(os.sched_getaffinity(0)) // 2))
LOAD_S = 300.0  # wall-clock time for the import of a function's module
WALL_PER_CPU = 10.0  # a call may wait this many times its CPU limit, for a busy machine or an answer of a server
GRACE_S = 5.0  # after the limit, before a process that does not answer is killed
CHUNK = 16  # completions of one request; an async function judges them at the same time
FURTHER_PROCESS_S = 0.5  # a batch that takes longer than this has a further process, and so on up to PROCESS_COUNT
FULL_LIMITS = 20  # timeouts of one batch with the full limit; the calls after them have a twentieth of it
ALL_FAILED = 8  # where at least so many completions are judged and every call raises, the function is wrong, not the completion
REASONS: dict[str, Failure] = {
    "timeout": "verifier timeout",
    "memory": "verifier out of memory",
    "exception": "verifier exception",
    "crash": "verifier crashed",
}


class VerifierError(RuntimeError):
    """A reward function that cannot be used, or that breaks its contract; the message is a sentence that names it."""


@dataclass(frozen=True)
class RewardFunction:
    """A reward function, where it is, and its limits."""

    target: str  # pkg.module:function or path/file.py:function
    source: str | None = None  # SHA-256 of its source file; None: not checked
    timeout_s: float = 5.0  # CPU seconds of one call; it may wait WALL_PER_CPU times as long
    memory_mb: int = 2048  # that its process may add after the import


@dataclass(frozen=True)
class Call:
    """What one call gets: the completion as TRL passes it, the columns (passed as lists of one), and constants."""

    completion: Any
    columns: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The score of one completion, or None and the reason why there is none."""

    score: float | None
    failure: Failure | None = None
    detail: str = ""


class Process:
    """A process that has loaded one reward function."""

    def __init__(self, function: RewardFunction) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [*sys.path, os.getcwd()])),  # noqa: PTH109
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "rlvr_sweeps.grading.reward_process", str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True,
        )  # fmt: skip
        self.buffer = b""
        self.send({"target": function.target, "source": function.source, "memory_mb": function.memory_mb})
        facts = self.receive(LOAD_S)
        if facts is None:
            self.close()
            raise VerifierError(
                f"{function.target}: its process ended, or did not answer within {LOAD_S:.0f} s, during the import."
            )
        if "error" in facts:
            self.close()
            raise VerifierError(facts["error"])
        self.facts = facts

    def send(self, value: Any) -> None:
        """Write one line; a process that has ended is noticed when its reply is read."""
        assert self.popen.stdin
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.write(json.dumps(value).encode() + b"\n")
            self.popen.stdin.flush()

    def receive(self, wall_s: float) -> Any:
        """Return the next reply; None where the process has ended, or has not answered in time."""
        assert self.popen.stdout
        deadline = time.monotonic() + wall_s
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.popen.stdout], [], [], left)[0]:
                return None
            read = os.read(self.popen.stdout.fileno(), 1 << 16)
            if not read:
                return None
            self.buffer += read
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def failure(self) -> str:
        """Return the kind of failure of a process that did not reply, and end it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(0.2)
        code = self.popen.returncode
        self.close()
        return "timeout" if code is None or code == -signal.SIGXCPU else "crash"

    def close(self) -> None:
        """Kill the process and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            with contextlib.suppress(OSError):  # closing flushes, and the reader is gone
                pipe.close()  # type: ignore[union-attr]


_idle: dict[RewardFunction, list[Process]] = {}
_lock = threading.Lock()


def close() -> None:
    """End every process of this pool; the next call starts others."""
    with _lock:
        for processes in _idle.values():
            for process in processes:
                process.close()
        _idle.clear()


def _reset_in_child() -> None:
    """Forget the processes in a forked child: they belong to the parent."""
    global _idle, _lock
    _idle, _lock = {}, threading.Lock()


os.register_at_fork(after_in_child=_reset_in_child)


class Batch:
    """The calls of one batch, shared by the threads that feed the processes."""

    def __init__(self, function: RewardFunction, calls: Sequence[Call]) -> None:
        self.function, self.calls = function, calls
        self.outcomes: list[Outcome | None] = [None] * len(calls)
        self.waiting = deque([list(range(start, min(start + CHUNK, len(calls)))) for start in range(0, len(calls), CHUNK)])
        self.timeouts = 0
        self.error: BaseException | None = None
        self.lock = threading.Lock()

    def next_chunk(self) -> list[int] | None:
        """Return the indices of the next request; None where nothing waits, or the batch has failed."""
        with self.lock:
            return self.waiting.popleft() if self.waiting and self.error is None else None

    def feed(self) -> None:
        """Send requests to one process, and replace it where it ends, until nothing waits."""
        process = None
        try:
            while (chunk := self.next_chunk()) is not None:
                process = process or take(self.function)
                refuse_missing_columns(self.function, process.facts, self.calls[chunk[0]])
                if not self.exchange(process, chunk):
                    process = None
        except BaseException as error:
            with self.lock:
                self.error = self.error or error
            if process is not None:
                process.close()
        else:
            if process is not None:
                with _lock:
                    _idle.setdefault(self.function, []).append(process)

    def exchange(self, process: Process, chunk: list[int]) -> bool:
        """Judge a chunk; where the process ends, record the failure and put back the rest. Return whether the process lives."""
        is_short = self.timeouts >= FULL_LIMITS
        cpu_s = self.function.timeout_s / (FULL_LIMITS if is_short else 1)
        wall_s = cpu_s * WALL_PER_CPU
        items = [
            (index, call.completion, {"columns": dict(call.columns), "constants": dict(call.constants)})
            for index in chunk
            for call in [self.calls[index]]
        ]
        process.send({"items": items, "cpu_s": cpu_s, "wall_s": wall_s})
        remaining = list(chunk)
        while remaining:
            reply = process.receive(wall_s + GRACE_S)
            if reply is None:
                kind = process.failure()
                if process.facts["is_async"] and len(remaining) > 1:  # whose failure it is shows when each is judged alone
                    again = [[index] for index in remaining]
                else:
                    self.record(remaining[0], None, kind, "", is_short)
                    again = [remaining[1:]] if remaining[1:] else []
                with self.lock:
                    self.waiting.extendleft(reversed(again))
                return False
            index, score, kind, detail = reply
            remaining.remove(index)
            self.record(index, score, kind, detail, is_short)
        return True

    def record(self, index: int, score: float | None, kind: str, detail: str, is_short: bool) -> None:
        """Store one outcome; raise VerifierError for a wrong return."""
        if kind == "return":
            text = shown(self.calls[index].completion)
            raise VerifierError(
                f"{self.function.target} {detail}. It must return one finite number, or None, for each completion. The "
                f"completion: {text}"
            )
        failure: Failure | None = REASONS.get(kind, "no score" if score is None else None)
        if kind == "timeout":
            with self.lock:
                self.timeouts += 1
            failure = "over budget" if is_short else failure
        self.outcomes[index] = Outcome(score, failure, detail)


def judge(function: RewardFunction, calls: Sequence[Call]) -> list[Outcome]:
    """Return the outcome of each call, in order.

    Raise VerifierError where the function cannot be loaded, reads a column that the calls lack, returns something else than one
    finite number or None for a completion, or raises for every one of ALL_FAILED or more completions.
    """
    batch = Batch(function, calls)
    threads: list[threading.Thread] = []
    try:
        while (batch.waiting and batch.error is None) or threads:
            if batch.waiting and batch.error is None and len(threads) < PROCESS_COUNT:
                threads.append(threading.Thread(target=batch.feed, daemon=True))
                threads[-1].start()
            threads[-1].join(FURTHER_PROCESS_S)
            threads = [thread for thread in threads if thread.is_alive()]
    except BaseException as error:  # interrupted: the threads end after their present chunk
        batch.error = error
        raise
    if batch.error is not None:
        raise batch.error
    outcomes = [outcome for outcome in batch.outcomes if outcome is not None]
    assert len(outcomes) == len(calls)
    refuse_always_raising(function, calls, outcomes)
    return outcomes


def check(function: RewardFunction, call: Call) -> None:
    """Raise VerifierError where the function cannot be loaded, or reads a column that the call lacks; judge nothing."""
    process = take(function)
    try:
        refuse_missing_columns(function, process.facts, call)
    finally:
        process.close()


def take(function: RewardFunction) -> Process:
    """Return an idle process of the function, or start one."""
    with _lock:
        processes = _idle.get(function)
        while processes:
            process = processes.pop()
            if process.popen.poll() is None:
                return process
    return Process(function)


def refuse_missing_columns(function: RewardFunction, facts: Mapping[str, Any], call: Call) -> None:
    """Raise VerifierError where the function reads a name that the problems do not have."""
    given = {"completions", *call.columns, *call.constants}
    missing = [name for name in facts["required"] if name not in given]
    if not missing:
        return
    if missing[0] == "completion_ids":
        raise VerifierError(
            f"{function.target} reads completion_ids, the completions as token ids, which stored samples do not have. Read the "
            "text in completions instead."
        )
    raise VerifierError(
        f"{function.target} reads {missing[0]!r}, which the problems do not have. They have: {', '.join(sorted(given))}. Map a "
        f"field of the file to it: data.columns.{missing[0]}=FIELD (of a benchmark: benchmark.NAME.columns.{missing[0]}=FIELD)."
    )


def refuse_always_raising(function: RewardFunction, calls: Sequence[Call], outcomes: Sequence[Outcome]) -> None:
    """Raise VerifierError where every call of a batch of ALL_FAILED or more raised an exception."""
    if len(calls) >= ALL_FAILED and all(outcome.failure == "verifier exception" for outcome in outcomes):
        raise VerifierError(
            f"{function.target} raised an exception for each of {len(calls)} completions, the first time {outcomes[0].detail}. "
            "It gets completions as TRL passes them: completion[0]['content'] is the text (verifier.text=true passes the text "
            f"itself). The first completion: {shown(calls[0].completion)}"
        )


def shown(completion: Any) -> str:
    """Return the beginning of a completion for a message."""
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    return repr(text[:200])
