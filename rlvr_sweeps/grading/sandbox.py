"""Comparisons that cannot hang, kill or harm their caller: a judge process of its own, whose workers are expendable.

`verdicts` sends the pairs to a clean process (`python -m rlvr_sweeps.grading.sandbox`), which has math-verify loaded and keeps
workers in a pebble pool. A worker that computes longer than CPU_S is ended by the kernel's own timer, so that no C code can
outlast it and a busy machine changes no verdict; one that asks for too much memory fails. That costs one verdict, and the
next worker is forked from the warm process within milliseconds. Works from any thread, and in a forked process, which gets a
judge of its own.
"""

import contextlib
import json
import multiprocessing
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rlvr_sweeps.grading.answers import Reason, judge
from rlvr_sweeps.grading.second_reader import opinion

CPU_S = 1.0  # of one comparison; warm, the slowest honest row of tests/answers.jsonl takes a third of it
WALL_S = 10.0  # for a comparison that waits instead of computing
MEMORY = 1 << 30  # bytes of address space that a worker may add
WORKERS = max(2, min(8, len(os.sched_getaffinity(0)) // 2))
Pair = tuple[str, str]  # (answer, gold)


def verdicts(pairs: Sequence[Pair]) -> list[Reason]:
    """`answers.judge` of each pair, `timeout` where it did not end. Raises RuntimeError where no judge can be started."""
    return [cast(Reason, reason or "timeout") for reason in _ask("judge", pairs)]


def opinions(pairs: Sequence[Pair]) -> list[str | None]:
    """`second.opinion` of each pair, None where it did not end."""
    return _ask("second", pairs)


def _ask(whom: str, pairs: Sequence[Pair]) -> list[str | None]:
    if not pairs:
        return []
    with _lock:
        for _ in range(2):  # a judge that somebody ended is replaced once
            try:
                return _exchange(whom, pairs)
            except (BrokenPipeError, json.JSONDecodeError):  # what a judge that was ended leaves
                close()
            except BaseException:  # interrupted between question and answer: the next answer would be to another question
                close()
                raise
        raise RuntimeError("the process that compares answers ended twice; try `python -m rlvr_sweeps.grading.sandbox` by hand")


def close() -> None:
    """End this process's judge; the next comparison starts another."""
    global _judge
    if _judge is not None:
        _judge.kill()
        _judge.wait()
        for pipe in (_judge.stdin, _judge.stdout):
            with contextlib.suppress(OSError):  # what was still to be written has no reader
                pipe.close()  # type: ignore[union-attr]
    _judge = None


_judge: "subprocess.Popen[str] | None" = None
_lock = threading.Lock()


def _forget() -> None:
    """In a forked child: the judge is the parent's."""
    global _judge, _lock
    _judge, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def _exchange(whom: str, pairs: Sequence[Pair]) -> list[str | None]:
    global _judge
    if _judge is None:
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        _judge = subprocess.Popen(
            [sys.executable, "-m", "rlvr_sweeps.grading.sandbox", str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment, start_new_session=True,
        )  # fmt: skip
    assert _judge.stdin and _judge.stdout
    _judge.stdin.write(json.dumps([whom, list(pairs)]) + "\n")
    patience = 60 + WALL_S * len(pairs)
    if not select.select([_judge.stdout], [], [], patience)[0]:
        raise BrokenPipeError
    answer: list[str | None] = json.loads(_judge.stdout.readline())
    return answer


# The judge process


def serve(caller: int) -> None:
    """Answer lines of pairs until the caller closes its end or is gone."""
    import logging

    from pebble import CONSTS, ProcessPool

    logging.disable(logging.CRITICAL)
    CONSTS.sleep_unit = 0.005  # how soon pebble sees that a worker is gone
    warm_up()

    def new_pool() -> ProcessPool:
        return ProcessPool(WORKERS, initializer=confine, context=multiprocessing.get_context("fork"))

    pool = new_pool()
    while line := next_line(caller):
        whom, pairs = json.loads(line)
        try:
            answers = answered(pool, whom, pairs)
        except RuntimeError:  # the pool is broken: a worker was killed before it said what it had taken
            pool = new_pool()
            answers = answered(pool, whom, pairs)
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def answered(pool: "ProcessPool", whom: str, pairs: Sequence[Pair]) -> list[str | None]:
    return [outcome(future) for future in [pool.schedule(bounded, args=(whom, *pair), timeout=WALL_S) for pair in pairs]]


def outcome(future: "ProcessFuture[str | None]") -> str | None:
    from pebble import ProcessExpired

    try:
        return future.result()
    except (ProcessExpired, TimeoutError):
        return None


def bounded(whom: str, answer: str, gold: str) -> str | None:
    """`judge`, or the second reader, under the kernel's timer, whose signal nobody handles: it ends this worker."""
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    try:
        return judge(answer, gold) if whom == "judge" else opinion(answer, gold)
    except Exception:  # whatever a parser makes of text that is no mathematics, MemoryError and RecursionError included
        return "unparsable" if whom == "judge" else None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def confine() -> None:
    """What a worker may not do, whatever it is made to run: write a file, open a socket, start a program, use much memory."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(forbid)


def forbid(event: str, arguments: tuple[object, ...]) -> None:
    """Audit hook (PEP 578): raise PermissionError for what a comparison has no business with."""
    if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "shutil.", "ctypes.")):
        raise PermissionError(event)
    if event == "open" and (arguments[1] not in (None, "r", "rb") or int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):  # type: ignore[call-overload]
        raise PermissionError(event)
    if event == "compile" and not of_a_library(arguments):  # eval and exec of text
        raise PermissionError(event)


def of_a_library(arguments: tuple[object, ...]) -> bool:
    """Whether what is compiled is a module that loads late, or sympy's own code for monomials, made from their number alone."""
    return str(arguments[1]).endswith(".py") or str(arguments[0]).startswith(("b'def monomial_", "def monomial_"))


def read_number(_converter: object, text: str) -> object:
    """latex2sympy's `parse_number` without sympy.Number(str), which evaluates the text as Python."""
    import sympy

    digits = text.replace(",", "")
    return sympy.Integer(int(digits)) if digits.isdigit() else sympy.Float(digits)


def warm_up() -> None:
    """Load what comparisons load late, so that every worker is forked with it, and take out the one place that evaluates."""
    from latex2sympy2_extended import latex2sympy2

    latex2sympy2._Latex2Sympy.parse_number = read_number
    shapes = [
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt2}"), ("(x+1)^2", "x^2+2x+1"), (r"\{x\}\cup[1,2)", r"[1,2)\cup\{x\}"),
        (r"\begin{pmatrix}1&x\\3&4\end{pmatrix}", r"\begin{bmatrix}1&x\\3&5\end{bmatrix}"), (r"2\sin x\cos x", r"\sin 2x"),
        (r"\mathbb{R}\setminus\{0\}", r"(-\infty,0)\cup(0,\infty)"), ("y=2x+3", "y-2x=3"), (r"\log_2 x", r"\frac{\ln x}{2}"),
        (r"e^{i\pi/4}", r"\frac{1+i}{\sqrt2}"), (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"), (r"\arctan 2", r"\tan^{-1} 3"),
        (r"\lfloor x \rfloor", r"|x|"), (r"n!", r"(n-1)!"), (r"1.41", r"\sqrt2"), (r"x \ne 3", r"x\geq 3"),
    ]  # fmt: skip
    for pair in shapes:
        judge(*pair)
    for pair in ((r"\frac{x}{2}+\sqrt{3}", "x^2"), (r"2\pi", r"\pi"), ("(x+1)^2", "x^2+2x+1"), (r"\sin 2x", r"2\log x")):
        opinion(*pair)


def next_line(caller: int) -> str:
    """The next request; empty once the caller is gone, even if a process it forked keeps our pipe open."""
    while not select.select([sys.stdin], [], [], 5.0)[0]:
        if os.getppid() != caller:
            return ""
    return sys.stdin.readline()


if TYPE_CHECKING:
    from pebble import ProcessFuture, ProcessPool


if __name__ == "__main__":
    serve(int(sys.argv[1]) if len(sys.argv) > 1 else os.getppid())
