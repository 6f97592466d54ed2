"""Test that no answer blocks, ends or changes the judge process, and that threads and forked processes can use it."""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from pebble import ProcessPool

from rlvr_sweeps.grading import sandbox
from rlvr_sweeps.grading.answers import judge
from rlvr_sweeps.grading.budget import BATCH_S, CPU_S, FULL_S, SHAPE_LIMIT, SHORT_S, Budget
from rlvr_sweeps.grading.grader import grade_all
from rlvr_sweeps.grading.rules import DEFAULT_RULES
from tests.conftest import ROOT

RIGHT, WRONG = (r"\frac{\sqrt{8}}{2}", r"\sqrt2"), (r"\sqrt{3}", r"\sqrt2")
ENDLESS = (r"\sqrt{9999!+1}", r"\sqrt2")  # not rejected as too large


def test_a_comparison_that_does_not_end_is_a_timeout():
    assert sandbox.verdicts([RIGHT, ENDLESS, WRONG]) == ["correct", "timeout", "wrong"]


@pytest.mark.slow
def test_hostile_answers_of_one_shape_are_refused_and_change_no_other_verdict():
    pairs = [pair for number in range(16) for pair in ((rf"\sqrt{{{9980 + number}!+1}}", r"\sqrt2"), RIGHT)]
    reasons = sandbox.verdicts(pairs)
    assert reasons[1::2] == ["correct"] * 16
    started = SHAPE_LIMIT + 2 * sandbox.WORKER_COUNT  # those that begin before the limit is reached
    assert SHAPE_LIMIT <= reasons.count("timeout") <= started
    assert reasons[0::2].count("over budget") == 16 - reasons.count("timeout")


def begin_worker():
    """Prepare a worker as `serve` does."""
    sandbox.warm_up()
    sandbox.confine()


def test_a_batch_without_time_has_short_comparisons_in_children(monkeypatch):
    monkeypatch.setattr(sandbox, "Budget", lambda: Budget(used_s=FULL_S))
    with ProcessPool(1, initializer=begin_worker, context=multiprocessing.get_context("fork")) as pool:
        compare = partial(sandbox.compare_within_limit, "judge", DEFAULT_RULES)
        reasons = sandbox.compare_pairs(pool, compare, [RIGHT, ENDLESS, WRONG, ("2^{10}", "1024")])
    assert reasons == ["correct", "over budget", "wrong", "wrong form"]


def end_at_first_attempt(folder, answer, gold, limit_s):
    """End this worker where no earlier attempt left its file, as a machine that is too busy may; judge otherwise."""
    attempt = folder / answer
    if not attempt.exists():
        attempt.touch()
        time.sleep(0.3)  # the pool must see the task begin
        os.kill(os.getpid(), signal.SIGPROF)
    return "correct"


def test_a_comparison_that_did_not_end_is_begun_once_more(tmp_path):
    with ProcessPool(1, context=multiprocessing.get_context("fork")) as pool:
        assert sandbox.compare_pairs(pool, partial(end_at_first_attempt, tmp_path), [("1", "1"), ("2", "2")]) == ["correct"] * 2


def test_the_budget_of_a_batch():
    budget = Budget()
    for _ in range(int(FULL_S / CPU_S)):
        assert budget.limit_s(f"{budget.used_s:.0f}" + "abc!"[: int(budget.used_s) % 4]) == CPU_S
        budget.used_s += CPU_S
    assert budget.limit_s("x") == SHORT_S
    budget.used_s = BATCH_S
    assert budget.limit_s("x") == 0


def test_a_shape_that_once_ended_is_not_refused():
    budget = Budget()
    for _ in range(SHAPE_LIMIT):
        budget.record("9!+x", ended=False, limit_s=CPU_S)
    assert budget.limit_s("12!+y") == 0
    assert budget.limit_s("12!+2y") == CPU_S
    budget.record("3!+z", ended=True, limit_s=CPU_S)
    assert budget.limit_s("12!+y") == CPU_S


def test_threads_share_a_judge():
    results = {}

    def work(name):
        results[name] = sandbox.verdicts([RIGHT, WRONG])

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(results.values()) == [["correct", "wrong"]] * 8


def put_verdicts(queue):
    """Put the verdicts of a right and a wrong answer into a queue."""
    queue.put(sandbox.verdicts([RIGHT, WRONG]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_start_their_own_judge(method):
    sandbox.verdicts([RIGHT])
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=put_verdicts, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == ["correct", "wrong"]
    child.join()
    assert sandbox.verdicts([WRONG, RIGHT]) == ["wrong", "correct"]


def test_a_killed_judge_is_replaced():
    sandbox.verdicts([RIGHT])
    os.kill(sandbox._judge.pid, signal.SIGKILL)
    assert sandbox.verdicts([RIGHT, WRONG]) == ["correct", "wrong"]


@pytest.mark.slow
def test_killed_workers_are_replaced():
    sandbox.verdicts([RIGHT])
    for _ in range(3):
        for worker in children(sandbox._judge.pid):
            os.kill(worker, signal.SIGKILL)
        assert sandbox.verdicts([RIGHT])[0] in ("correct", "timeout")
        time.sleep(0.1)
    assert sandbox.verdicts([RIGHT, WRONG]) == ["correct", "wrong"]


def test_after_an_interrupted_request_the_next_request_gets_its_own_reply():
    """Interrupt the caller between its request and the reply."""
    sandbox.verdicts([RIGHT])

    def interrupt(*_):
        raise TimeoutError

    previous_handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(TimeoutError):
            sandbox.verdicts([ENDLESS, RIGHT])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)
    assert sandbox.verdicts([RIGHT, WRONG]) == ["correct", "wrong"]
    assert sandbox.verdicts([WRONG, WRONG]) == ["wrong", "wrong"]


@pytest.mark.slow
def test_the_judge_survives_workers_killed_during_a_comparison():
    """Kill workers, as a node without memory does: only verdicts may be missing."""
    sandbox.verdicts([RIGHT])

    def kill():
        for _ in range(3):
            time.sleep(0.3)
            for worker in children(sandbox._judge.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    results = []
    while killer.is_alive():
        results += sandbox.verdicts([RIGHT, WRONG] * 20)
    killer.join()
    assert set(results) <= {"correct", "wrong", "timeout"}
    assert sandbox.verdicts([RIGHT, WRONG]) == ["correct", "wrong"]


def children(pid: int) -> list[int]:
    """Return the ids of a process's child processes."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def test_the_judge_ends_with_its_caller():
    """Kill the caller by SIGKILL while its forked child keeps the pipe open."""
    code = (
        "import os, time; from rlvr_sweeps.grading import sandbox; sandbox.verdicts([('x','y')]);"
        "print(sandbox._judge.pid, flush=True); os.fork(); time.sleep(60)"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    judge_pid = int(caller.stdout.readline())
    children_of_caller = children(caller.pid)
    caller.kill()
    caller.wait()
    deadline = time.monotonic() + 30
    while alive(judge_pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    for child in children_of_caller:
        if child != judge_pid and alive(child):
            os.kill(child, signal.SIGKILL)
    assert not alive(judge_pid)


def alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


ATTACKS = [
    r"__import__('os').system('touch {mark}')",
    r"\text{{__import__('os').system('touch {mark}')}}",
    r"x+__import__('os').system('touch {mark}')",
    r"\mathrm{{exec(open('{mark}','w').write('1'))}}+1",
    r"{{open('{mark}','w')}}",
    r"\operatorname{{eval}}(open('{mark}','w'))+x",
    r"().__class__.__bases__[0].__subclasses__()+x",
    r"1;import os;os.system('touch {mark}')",
    "\\frac{{1}}{{2}}\n__import__('pathlib').Path('{mark}').touch()",
]


@pytest.mark.parametrize("gold", ["17", r"\sqrt2", "x+1", r"\text{yes}"])
def test_a_completion_is_never_executed(tmp_path, gold):
    marker = tmp_path / "executed"
    texts = [f"</think>\\boxed{{{attack.format(mark=marker)}}}" for attack in ATTACKS]
    assert not any(verdict.correct for verdict in grade_all(texts, [gold] * len(texts)))
    assert not marker.exists()


@pytest.mark.slow
def test_no_answer_makes_the_comparison_evaluate_write_or_connect():
    """Check for all rows of answers.jsonl, without the sandbox: no code is compiled, no file written and no socket opened."""
    code = """
import json, sys
from rlvr_sweeps.grading import sandbox
sandbox.warm_up()
violations = []
watched = ("socket.", "subprocess.", "os.", "shutil.", "compile")
def hook(event, arguments):
    writes = event == "open" and arguments[1] not in (None, "r", "rb")
    allowed = event == "compile" and sandbox.is_library_code(arguments)
    if writes or event.startswith(watched) and not allowed:
        violations.append((event, str(arguments)[:80]))
sys.addaudithook(hook)
for line in open("tests/grading/answers.jsonl"):
    case = json.loads(line)
    if case["verdict"] != "timeout":
        sandbox.judge(case["answer"], case["gold"])
print(json.dumps(violations))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert process.stdout.strip() == "[]", process.stdout + process.stderr[-2000:]


FORBIDDEN = {
    "eval": lambda: eval("1+1"),
    "write": lambda: Path("forbidden").write_text("1"),
    "low-level write": lambda: os.open("forbidden", os.O_WRONLY | os.O_CREAT),
    "socket": lambda: socket.socket(),
    "program": lambda: subprocess.run(["true"]),
    "shell": lambda: os.system("true"),
    "fork": lambda: os.fork(),
    "memory": lambda: bytearray(4 << 30),
}


@pytest.mark.parametrize("action", FORBIDDEN)
def test_a_worker_is_confined(action):
    """Test that an action which an answer might cause raises an error in a worker."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            sandbox.confine()
            FORBIDDEN[action]()
            os.write(write_end, b"done")
        except (PermissionError, MemoryError) as error:
            os.write(write_end, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read_end, 100) in (b"PermissionError", b"MemoryError")


def test_numbers_are_read_without_evaluating_them():
    sandbox.warm_up()
    assert judge(r"\frac{6}{3}\sqrt{2}", r"2.0\sqrt2") == "correct"
