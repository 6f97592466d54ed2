"""Run comparisons in a separate judge process, so that they cannot hang, kill or harm the caller.

`verdicts` sends the pairs to `python -m rlvr_sweeps.grading.sandbox`, which has math-verify loaded and keeps its workers in a
pebble pool. The kernel's CPU timer ends a worker that computes longer than it may (`budget.py`), so that C code cannot evade
the limit and a busy machine changes no verdict. A worker that exceeds MEMORY_BYTES fails. Either costs one verdict; the next
worker is forked within milliseconds. The functions work from any thread, and in a forked process, which starts its own judge.
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
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Literal, cast

from rlvr_sweeps import patches
from rlvr_sweeps.grading import tasks
from rlvr_sweeps.grading.answers import AnswerReason, can_be_compared, judge
from rlvr_sweeps.grading.budget import CPU_S, Budget, shape
from rlvr_sweeps.grading.rules import DEFAULT_RULES, Rules
from rlvr_sweeps.grading.second_reader import opinion

if TYPE_CHECKING:
    from pebble import ProcessPool

WALL_S = 10.0  # of one comparison, in case it waits instead of computing
MEMORY_BYTES = 1 << 30  # address space that a worker may add
WORKER_COUNT = max(2, min(8, len(os.sched_getaffinity(0)) // 2))
REPEATED = 3  # comparisons of a batch that are begun once more
QUEUED = 3  # comparisons per worker that have begun or wait for it; few, so that the budget decides on the others
Pair = tuple[str, str]  # (answer, gold)
Comparison = Literal["judge", "second", "gold"]  # `answers.judge`, `second_reader.opinion` or `answers.can_be_compared`
Compare = Callable[[str, str, float], str | None]  # of an answer, a gold answer and a limit in CPU seconds
UNFINISHED = ("timeout", "over budget")

_judge: "subprocess.Popen[str] | None" = None
_lock = threading.Lock()
_may_fork = False  # in a worker, while it forks the child of a comparison


def verdicts(pairs: Sequence[Pair], rules: Rules = DEFAULT_RULES) -> list[AnswerReason]:
    """Return `answers.judge` of each pair, or `tasks.score` where the gold answer is a task's.

    The reason is `timeout` where a comparison did not end in CPU_S, and `over budget` where the batch left it less than that.
    Raise RuntimeError if no judge can be started.
    """
    return [cast(AnswerReason, reason) for reason in _request("judge", pairs, rules)]


def opinions(pairs: Sequence[Pair]) -> list[str | None]:
    """Return `second_reader.opinion` of each pair, None where it did not end."""
    return [None if opinion in UNFINISHED else opinion for opinion in _request("second", pairs, DEFAULT_RULES)]


def readable(golds: Sequence[str]) -> list[bool]:
    """Return `answers.can_be_compared` of each gold answer, False where it did not end."""
    return [result == "readable" for result in _request("gold", [("", gold) for gold in golds], DEFAULT_RULES)]


def _request(comparison: Comparison, pairs: Sequence[Pair], rules: Rules) -> list[str | None]:
    if not pairs:
        return []
    with _lock:
        for _ in range(2):  # a judge that was killed is replaced once
            try:
                return _exchange(comparison, pairs, rules)
            except (BrokenPipeError, json.JSONDecodeError):  # the judge was killed
                close()
            except BaseException:  # interrupted between request and reply: the next reply would belong to this request
                close()
                raise
        raise RuntimeError(
            "The process that compares answers ended twice. Run `python -m rlvr_sweeps.grading.sandbox` to see its error."
        )


def close() -> None:
    """Kill this process's judge; the next comparison starts another."""
    global _judge
    if _judge is not None:
        _judge.kill()
        _judge.wait()
        for pipe in (_judge.stdin, _judge.stdout):
            with contextlib.suppress(OSError):  # closing flushes, and the reader is gone
                pipe.close()  # type: ignore[union-attr]
    _judge = None


def _reset_in_child() -> None:
    """Forget the judge in a forked child: it belongs to the parent."""
    global _judge, _lock
    _judge, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_reset_in_child)


def _exchange(comparison: Comparison, pairs: Sequence[Pair], rules: Rules) -> list[str | None]:
    global _judge
    if _judge is None:
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        _judge = subprocess.Popen(
            [sys.executable, "-m", "rlvr_sweeps.grading.sandbox", str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment, start_new_session=True,
        )  # fmt: skip
    assert _judge.stdin and _judge.stdout
    _judge.stdin.write(json.dumps([comparison, asdict(rules), list(pairs)]) + "\n")
    timeout_s = 60 + WALL_S * len(pairs)
    if not select.select([_judge.stdout], [], [], timeout_s)[0]:
        raise BrokenPipeError
    results: list[str | None] = json.loads(_judge.stdout.readline())
    return results


# Below: the judge process


def serve(caller: int) -> None:
    """Compare the pairs of each request line until the caller closes its end or has exited."""
    import logging

    from pebble import ProcessPool

    logging.disable(logging.CRITICAL)
    patches.set_pool_interval(0.005)
    warm_up()

    def new_pool() -> ProcessPool:
        return ProcessPool(WORKER_COUNT, initializer=confine, context=multiprocessing.get_context("fork"))

    pool, loaded = new_pool(), set[str]()
    while line := next_line(caller):
        comparison, fields, pairs = json.loads(line)
        compare = partial(compare_within_limit, comparison, Rules(**fields))
        if load_scorers(pairs, loaded):
            pool.stop()  # type: ignore[no-untyped-call]
            pool.join()
            pool = new_pool()
        try:
            results = compare_pairs(pool, compare, pairs)
        except (RuntimeError, Empty):  # the pool is broken: a worker was killed before it acknowledged its task
            pool.stop()  # type: ignore[no-untyped-call]
            pool = new_pool()
            results = compare_pairs(pool, compare, pairs)
        sys.stdout.write(json.dumps(results) + "\n")
        sys.stdout.flush()
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def load_scorers(pairs: Sequence[Pair], loaded: set[str]) -> bool:
    """Load the tasks of the pairs that are not in `loaded`, and return whether there was one.

    Importing reasoning-gym takes more CPU time than one comparison may use, so workers are forked after it.
    """
    needed = {}
    for _, gold in pairs:
        if tasks.is_task_gold(gold):
            task, parameters, _ = tasks.read_gold(gold)
            needed[json.dumps([task, parameters], sort_keys=True)] = (task, parameters)
    new = {key: value for key, value in needed.items() if key not in loaded}
    for key, (task, parameters) in new.items():
        tasks.scorer(task, parameters)
        loaded.add(key)
    return bool(new)


def compare_pairs(pool: "ProcessPool", compare: Compare, pairs: Sequence[Pair]) -> list[str | None]:
    """Return the result of each comparison; `timeout` or `over budget` where it did not end.

    The first REPEATED comparisons that do not end within CPU_S are begun once more, unless the budget leaves them less: a
    virtual machine counts time that its host took away as CPU time, and a worker may be ended by something else than its own
    computation.
    """
    budget, results, repeated = Budget(), list[str | None]([None] * len(pairs)), set[int]()
    waiting, running = deque(enumerate(pairs)), dict[Future[str | None], tuple[int, float]]()
    ended: SimpleQueue[Future[str | None]] = SimpleQueue()
    while waiting or running:
        while waiting and len(running) < QUEUED * WORKER_COUNT:
            index, (answer, gold) = waiting.popleft()
            limit_s = budget.limit_s(answer)
            if results[index] == "timeout" and limit_s < CPU_S:  # there is no time for another attempt
                budget.unfinished[shape(answer)] += 1
                continue
            if limit_s:
                future = pool.schedule(compare, args=(answer, gold, limit_s), timeout=WALL_S)
                running[future] = index, limit_s
                future.add_done_callback(ended.put)
            else:
                results[index] = "over budget"
        if running:
            completed = ended.get(timeout=WALL_S + 2)  # Empty: a worker was killed with a task that it had not acknowledged
            index, limit_s = running.pop(completed)
            results[index] = result_or(completed, "timeout" if limit_s == CPU_S else "over budget")
            if results[index] == "timeout" and index not in repeated and len(repeated) < REPEATED:
                repeated.add(index)
                budget.used_s += limit_s
                waiting.appendleft((index, pairs[index]))
            else:
                budget.record(pairs[index][0], results[index] not in UNFINISHED, limit_s)
    return results


def result_or(future: Future[str | None], unfinished: str) -> str | None:
    """Return a comparison's result, or `unfinished` if it did not end within its limit."""
    from pebble import ProcessExpired

    try:
        return future.result()
    except (ProcessExpired, TimeoutError):
        return unfinished


def compare_within_limit(comparison: Comparison, rules: Rules, answer: str, gold: str, limit_s: float) -> str | None:
    """Compare in this worker, or with a limit below CPU_S in a child of it, which is killed instead of this worker."""
    if limit_s < CPU_S:
        return compare_in_child(lambda: compare_now(comparison, rules, answer, gold), limit_s)
    signal.setitimer(signal.ITIMER_PROF, limit_s)  # SIGPROF has no handler, so that it ends the process
    try:
        return compare_now(comparison, rules, answer, gold)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def compare_now(comparison: Comparison, rules: Rules, answer: str, gold: str) -> str | None:
    """Return the result of one comparison."""
    try:
        if tasks.is_task_gold(gold):
            return tasks.score(answer, gold) if comparison == "judge" else None
        if comparison == "gold":
            return "readable" if can_be_compared(gold) else None
        return judge(answer, gold, rules) if comparison == "judge" else opinion(answer, gold)
    except Exception:  # any error of a parser on text that is not mathematics, MemoryError and RecursionError included
        return "unparsable" if comparison == "judge" else None


def compare_in_child(compare: Callable[[], str | None], limit_s: float) -> str | None:
    """Run a comparison in a forked child that the kernel ends after `limit_s` of CPU time; `over budget` if it did.

    Many workers that end within milliseconds would break pebble's pool, which must see a worker begin its task first.
    """
    global _may_fork
    reading, writing = os.pipe()
    _may_fork = True
    child = os.fork()
    _may_fork = False
    if child == 0:
        try:
            signal.setitimer(signal.ITIMER_PROF, limit_s)
            signal.alarm(int(WALL_S))
            os.write(writing, json.dumps(compare()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        written = pipe.read()
    os.waitpid(child, 0)
    result: str | None = json.loads(written) if written else "over budget"
    return result


def confine() -> None:
    """Forbid this worker to write a file, open a socket, start a program or use much memory, whatever it executes."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, size + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(forbid)


def forbid(event: str, arguments: tuple[object, ...]) -> None:
    """Raise PermissionError for what no comparison needs. An audit hook (PEP 578)."""
    if event == "os.fork" and _may_fork:
        return
    if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "shutil.", "ctypes.")):
        raise PermissionError(event)
    if event == "open" and (arguments[1] not in (None, "r", "rb") or int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):  # type: ignore[call-overload]
        raise PermissionError(event)
    if event == "compile" and not is_library_code(arguments):  # eval and exec of text
        raise PermissionError(event)


def is_library_code(arguments: tuple[object, ...]) -> bool:
    """Return whether the compiled code is a module imported late, or sympy's generated code for monomials."""
    return str(arguments[1]).endswith(".py") or str(arguments[0]).startswith(("b'def monomial_", "def monomial_"))


def read_latex_number(_converter: object, text: str) -> object:
    """Replace latex2sympy's `parse_number`, which calls sympy.Number(str) and so evaluates the text as Python."""
    import sympy

    digits = text.replace(",", "")
    return sympy.Integer(int(digits)) if digits.isdigit() else sympy.Float(digits)


def warm_up() -> None:
    """Import what comparisons import late, so that workers are forked with it, and replace the parser's call that evaluates."""
    patches.replace_latex_number_parser(read_latex_number)
    patches.parse_latex_in_two_stages()
    pairs = [
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt2}"), ("(x+1)^2", "x^2+2x+1"), (r"\{x\}\cup[1,2)", r"[1,2)\cup\{x\}"),
        (r"\begin{pmatrix}1&x\\3&4\end{pmatrix}", r"\begin{bmatrix}1&x\\3&5\end{bmatrix}"), (r"2\sin x\cos x", r"\sin 2x"),
        (r"\mathbb{R}\setminus\{0\}", r"(-\infty,0)\cup(0,\infty)"), ("y=2x+3", "y-2x=3"), (r"\log_2 x", r"\frac{\ln x}{2}"),
        (r"e^{i\pi/4}", r"\frac{1+i}{\sqrt2}"), (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"), (r"\arctan 2", r"\tan^{-1} 3"),
        (r"\lfloor x \rfloor", r"|x|"), (r"n!", r"(n-1)!"), (r"1.41", r"\sqrt2"), (r"x \ne 3", r"x\geq 3"),
    ]  # fmt: skip
    for pair in pairs:
        judge(*pair)
    for pair in ((r"\frac{x}{2}+\sqrt{3}", "x^2"), (r"2\pi", r"\pi"), ("(x+1)^2", "x^2+2x+1"), (r"\sin 2x", r"2\log x")):
        opinion(*pair)


def next_line(caller: int) -> str:
    """Return the next request; "" once the caller has exited, even if a process it forked keeps the pipe open."""
    while not select.select([sys.stdin], [], [], 5.0)[0]:
        if os.getppid() != caller:
            return ""
    return sys.stdin.readline()


if __name__ == "__main__":
    serve(int(sys.argv[1]) if len(sys.argv) > 1 else os.getppid())
