"""Test that the score of a task of reasoning-gym decides where value is not enough, and that it runs in the sandbox."""

import json
import subprocess
import sys

import pytest

from rlvr_sweeps.grading import sandbox, tasks
from rlvr_sweeps.grading.grader import grade, grade_all
from rlvr_sweeps.grading.tasks import read_gold, without_latex, write_gold

ENTRY = {
    "question": "Simplify 12/16.",
    "answer": "3/4",
    "metadata": {"numerator": 12, "denominator": 16, "simplified_numerator": 3, "simplified_denominator": 4},
}
GOLD = write_gold("fraction_simplification", {}, ENTRY)


@pytest.mark.parametrize(
    "answer", ["3/4", r"\frac{3}{4}", r"\dfrac{3}{4}", r"\tfrac34", r"$\frac{3}{4}$", " 3 / 4 ", r"\text{3/4}"]
)
def test_every_spelling_of_the_simplified_fraction_is_correct(answer):
    assert grade(rf"</think>\boxed{{{answer}}}", GOLD).correct


@pytest.mark.parametrize(
    "answer",
    [
        "6/8",
        r"{3}/{4}",
        r"\frac{12}{16}",
        "0.75",
        "4/3",
        "3",
        "",
        r"\frac{3}{4}+1",
        r"\frac{3}{4}\frac{5}{6}",
        GOLD,
        "3/4, 3/4",
    ],
)
def test_an_equal_value_in_another_form_is_wrong(answer):
    assert not grade(rf"</think>\boxed{{{answer}}}", GOLD).correct


def test_extraction_and_its_reasons_are_those_of_every_problem():
    verdicts = grade_all(["It is $3/4$.", "It is 3/4", "no"], [GOLD] * 3, "any")
    assert [verdict.reason for verdict in verdicts] == ["correct", "correct", "no answer"]
    assert grade("3/4", GOLD, "boxed").reason == "no box"


def test_a_gold_answer_holds_task_parameters_and_entry():
    gold = write_gold("puzzle24", {"max_value": 6}, ENTRY)
    assert read_gold(gold) == ("puzzle24", {"max_value": 6}, {key: ENTRY[key] for key in ("answer", "metadata")})
    with pytest.raises(TypeError):
        write_gold("puzzle24", {}, {"answer": object()})


def test_plain_text_of_an_answer():
    assert without_latex(r"\dfrac{3}{4}") == "3/4" and without_latex(r"\text{turn left}") == "turn left"


def test_the_second_reader_has_no_opinion():
    assert sandbox.opinions([("3/4", GOLD), ("1/2", "0.5")]) == [None, "same"]


def test_tasks_and_mathematics_are_judged_in_one_request():
    pairs = [("3/4", GOLD), (r"\frac{\sqrt{8}}{2}", r"\sqrt2"), ("6/8", GOLD), (r"\sqrt{9999!+1}", r"\sqrt2")]
    assert sandbox.verdicts(pairs) == ["correct", "correct", "wrong", "timeout"]


def test_a_score_that_does_not_end_is_a_timeout():
    """Countdown evaluates the answer as an expression."""
    entry = {"answer": "1+1", "metadata": {"numbers": [9, 9, 9], "target": 18}}
    gold = write_gold("countdown", {}, entry)
    assert sandbox.verdicts([("9**9**9", gold), ("9+9", gold), ("3/4", GOLD)])[2] == "correct"
    assert sandbox.verdicts([("9**9**9", gold)])[0] in ("timeout", "wrong", "unparsable")


def test_the_caller_does_not_import_reasoning_gym():
    code = (
        "import sys\n"
        "from rlvr_sweeps.grading.grader import grade\n"
        f"assert grade('</think>\\\\boxed{{3/4}}', {GOLD!r}).correct\n"
        "assert 'reasoning_gym' not in sys.modules\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_a_missing_package_is_an_error_and_not_a_wrong_answer(monkeypatch):
    gold = write_gold("fraction_simplification", {}, ENTRY | {"answer": "missing"})
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match=r"pip install '\.\[smollm2\]'"):
        grade(r"</think>\boxed{3/4}", gold)
    assert grade(r"</think>\boxed{3}", "3").correct and json.loads(gold.partition(" ")[2])["answer"] == "missing"
