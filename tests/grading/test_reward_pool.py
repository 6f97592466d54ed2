"""Test reward functions in processes of their own: every failure is an error, or a verdict with its reason."""

import os
import signal

import pytest

from rlvr_sweeps.grading import reward_pool
from rlvr_sweeps.grading.reward_pool import RewardFunction, VerifierError
from rlvr_sweeps.grading.reward_process import LoadError, source_digest
from rlvr_sweeps.grading.verifiers import MATH, Answered, Part, Verifier, read_answer, verdicts

CODE = """
import asyncio, os, re, signal, time
CALLS = []

def reward(completions, answer, **kwargs):
    text = completions[0][0]["content"]
    if text == "loop":
        while True: pass
    if text == "sleep": time.sleep(1000)
    if text == "swallow":
        while True:
            try:
                while True: pass
            except BaseException: pass
    if text == "memory": bytearray(4 << 30)
    if text == "exit": os._exit(3)
    if text == "killed": os.kill(os.getpid(), signal.SIGKILL)
    if text == "raise": 1 / 0
    if text == "leave": raise SystemExit
    if text == "none": return [None]
    if text == "nan": return [float("nan")]
    if text == "two": return [1, 2]
    if text == "text": return ["1"]
    if text == "number": return 1.0
    if text == "array":
        import numpy
        return numpy.array([0.5], numpy.float32)
    print("this does not stand among the replies")
    return [1.0 if text == answer[0] else 0.25]

async def server(completions, answer, **kwargs):
    text = completions[0][0]["content"]
    CALLS.append(text)
    await asyncio.sleep(1000 if text == "sleep" else 0.1)
    if text == "exit": os._exit(3)
    if text == "count": return [float(len(CALLS))]
    return [float(text == answer[0])]

def five_lines(completions, solution, **kwargs):
    matches = [re.search(r"<answer>(.*?)</answer>", completion[0]["content"]) for completion in completions]
    return [1.0 if match and match.group(1) == gold else 0.0 for match, gold in zip(matches, solution)]

def with_prompt(prompts, completions, unit, scale=1, grading=None):
    return [scale * float(prompts[0][-1]["content"] + completions[0] == unit[0] and grading == "boxed")]

def counts_its_calls(completions, **kwargs):
    CALLS.append(len(completions))
    return [float(sum(CALLS)) if len(completions) == 1 else 0.0]

def of_tokens(completions, completion_ids, **kwargs):
    return [0.0]

not_callable = 3
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """Return a function that returns a Part for a function of the file above, with limits for tests."""
    path = tmp_path_factory.mktemp("rewards") / "rewards.py"
    path.write_text(CODE)
    yield lambda name, **fields: Part(
        name, RewardFunction(f"{path}:{name}", source_digest(f"{path}:{name}"), 0.2, 1000), **fields
    )
    reward_pool.close()


def judged(part, *texts, columns=None, **fields):
    """Return the verdicts on texts whose gold answer is 5."""
    return verdicts(
        Verifier((part,), **fields), [Answered(text, "5", {"answer": "5"} if columns is None else columns) for text in texts]
    )


def test_a_call_that_fails_costs_one_verdict_and_its_reason_is_named(target):
    reasons = {
        "loop": "verifier timeout", "sleep": "verifier timeout", "swallow": "verifier timeout",
        "memory": "verifier out of memory", "exit": "verifier crashed", "killed": "verifier crashed",
        "raise": "verifier exception", "leave": "verifier exception", "none": "no score",
    }  # fmt: skip
    texts = [text for failing in reasons for text in (failing, "5", "4")]
    results = judged(target("reward"), *texts)
    assert [result.reason for result in results[0::3]] == list(reasons.values())
    assert all(not result.correct and result.score == 0 for result in results[0::3])
    assert all(result.correct and result.reward == 1.0 for result in results[1::3])
    assert {(result.reason, result.reward) for result in results[2::3]} == {("partly correct", 0.25)}


@pytest.mark.parametrize(
    ("text", "message"),
    [("nan", "returned nan, which is no finite number"), ("two", "returned 2 scores for one completion"),
     ("text", "returned '1', which is no number"), ("number", r"returned 1\.0, which is no list")],
)  # fmt: skip
def test_a_wrong_return_is_an_error_that_names_it(target, text, message):
    with pytest.raises(VerifierError, match=rf"rewards\.py:reward {message}.*The completion: '{text}'"):
        judged(target("reward"), "5", text)


def test_an_array_is_a_return(target):
    assert judged(target("reward"), "array")[0].reward == 0.5


def test_a_function_that_raises_for_every_completion_is_an_error(target):
    with pytest.raises(
        VerifierError, match=r"raised an exception for each of 8 .*ZeroDivisionError: division by zero, line 18"
    ):
        judged(target("reward"), *["raise"] * 8)


def test_async_functions_wait_together(target):
    results = judged(target("server"), *["5", "4", "count"] * 4)
    assert [result.correct for result in results[0::3] + results[1::3]] == [True] * 4 + [False] * 4
    assert [result.reward for result in results[2::3]] == [12.0] * 4  # all calls had begun before the first one ended
    reasons = [result.reason for result in judged(target("server"), "5", "sleep", "exit", "4")]
    assert reasons == ["correct", "verifier timeout", "verifier crashed", "wrong"]


def test_a_function_for_trl_works_as_it_is(target):
    """It reads a column by its own name and gets conversations, and each completion in a call of its own."""
    columns = {"solution": "7", "other": 1}
    assert [result.reward for result in judged(target("five_lines"), "<answer>7</answer>", "7", columns=columns)] == [1.0, 0.0]
    assert [result.reward for result in judged(target("counts_its_calls"), "a", "b", "c", correct_at=3)] == [1.0, 2.0, 3.0]


def test_arguments_columns_and_texts(target):
    part = target("with_prompt", arguments=(("scale", 3),), columns=("unit",), text=True)
    columns = {"prompt": [{"role": "user", "content": "5 k"}], "unit": "5 kg", "answer": "?"}
    assert judged(part, "g", "m", columns=columns, policy="boxed")[0].reward == 3.0
    with pytest.raises(VerifierError, match=r"reads 'unit', which the problems do not have.*data\.columns\.unit=FIELD"):
        judged(part, "g")
    with pytest.raises(VerifierError, match="reads completion_ids"):
        judged(target("of_tokens"), "g")


def test_several_verifiers_add_their_weighted_scores(target):
    parts = (Part(MATH, RewardFunction(MATH)), target("reward", weight=0.5))
    results = verdicts(
        Verifier(parts, 1.5, "any"), [Answered(text, "5", {"answer": "5"}) for text in ("5", "5.0", "6", "exit")]
    )
    assert [result.reward for result in results] == [1.5, 1.125, 0.125, 0.0]
    assert [result.reason for result in results] == ["correct", "partly correct", "wrong", "no answer"]


def test_what_cannot_be_loaded_is_named(target, tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    folder = target("reward").function.target.rpartition("/")[0]
    for name, message in (
        (f"{folder}/rewards.py:missing", r"has no function 'missing'\. Its functions: reward, server"),
        (f"{folder}/rewards.py:not_callable", "has no function 'not_callable'"),
        (f"{tmp_path}/broken.py:reward", "cannot be imported .*ModuleNotFoundError: No module named 'no_such_package', line 1"),
    ):
        with pytest.raises(VerifierError, match=message):
            judged(Part("x", RewardFunction(name)), "5")
    for name, message in (
        ("nothing.py:reward", r"nothing\.py does not exist"), ("rlvr_sweeps.nothing:f", "no module 'rlvr_sweeps.nothing'"),
        ("reward", "names no function"), ("math:sqrt", "has no Python source"),
    ):  # fmt: skip
        with pytest.raises(LoadError, match=message):
            source_digest(name)


def test_a_changed_source_is_refused(tmp_path):
    path = tmp_path / "changing.py"
    path.write_text("def reward(completions): return [1.0]\n")
    part = Part("x", RewardFunction(f"{path}:reward", source_digest(f"{path}:reward")))
    assert judged(part, "5")[0].correct
    reward_pool.close()
    path.write_text("def reward(completions): return [0.0]\n")
    with pytest.raises(VerifierError, match=r"changing\.py has changed"):
        judged(part, "5")


def test_a_process_that_was_killed_between_two_batches_is_replaced(target):
    part = target("counts_its_calls")
    assert judged(part, "a")[0].reward >= 1
    for processes in reward_pool._idle.values():
        for process in processes:
            os.kill(process.popen.pid, signal.SIGKILL)
            process.popen.wait()
    assert judged(part, "a")[0].reward == 1.0


def test_what_stands_for_a_completion_in_a_vote():
    assert read_answer(Verifier(), "so </think>\n\\boxed{4}") == "4"
    assert read_answer(Verifier(), "It is $x+1$.") == "x+1"
    assert read_answer(Verifier(), "First.\nParis\n\n") == "Paris"
    assert read_answer(Verifier(), "") is None
