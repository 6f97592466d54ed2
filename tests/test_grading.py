"""The answer check: its policy, and that integers need no parser."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_sweeps.grading import grade, last_box

THINK = "hm</think>"


@pytest.mark.parametrize(
    ("completion", "gold", "reason"),
    [
        (THINK + r"so \boxed{5}", "5", "correct"),
        (THINK + r"\boxed{ 5 }", "5", "correct"),
        (THINK + r"\boxed{+05}", "5", "correct"),
        (THINK + r"\boxed{-0}", "0", "correct"),
        (THINK + r"\boxed{-5}", "5", "wrong"),
        (THINK + r"\boxed{6}", "5", "wrong"),
        (THINK + r"\boxed{5} no, \boxed{6}", "5", "wrong"),  # the last box counts
        (r"\boxed{5}", "5", "unfinished thinking"),
        (r"\boxed{5}</think>", "5", "no box"),
        (THINK + "5", "5", "no box"),
        (THINK + r"\boxed{5", "5", "no box"),
        (THINK + r"\boxed{4}</think>\boxed{5}", "5", "correct"),  # after the last </think>
        (THINK + r"\boxed{\frac{1}{2}}", r"\frac{2}{4}", "correct"),
        (THINK + r"\boxed{0.5}", r"\frac{1}{2}", "correct"),
        (THINK + r"\boxed{x^2+2x+1}", r"(x+1)^2", "correct"),
        (THINK + r"\boxed{\sqrt{3}}", r"\sqrt{2}", "wrong"),
        ("", "5", "unfinished thinking"),
    ],
)
def test_cases(completion, gold, reason):
    verdict = grade(completion, gold)
    assert (verdict.reason, verdict.correct) == (reason, reason == "correct")


@given(st.integers(), st.integers())
def test_integers(answer, gold):
    assert grade(f"{THINK}\\boxed{{{answer}}}", str(gold)).correct == (answer == gold)


@given(st.text(alphabet="ab{}\\ ", max_size=30))
def test_a_box_comes_back_with_its_braces_balanced(text):
    found = last_box("\\boxed{" + text + "}")
    if text.count("{") == text.count("}") and balanced(text) and "\\boxed{" not in text:
        assert found == text


def balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


def test_a_million_digits_need_no_int():
    limit = sys.get_int_max_str_digits()
    assert grade(f"{THINK}\\boxed{{{'9' * (limit * 10)}}}", "9").reason == "wrong"
