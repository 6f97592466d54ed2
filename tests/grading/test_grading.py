"""Test the answer check: its policies, its table of cases, and properties that hold for every answer."""

import json
import random
import sys
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy
from sympy import srepr

from rlvr_sweeps import patches
from rlvr_sweeps.grading.answers import AnswerReason
from rlvr_sweeps.grading.expressions import TOO_LARGE, read_latex
from rlvr_sweeps.grading.extraction import POLICIES, boxed_answer, extract
from rlvr_sweeps.grading.grader import compare_all, compare_without_parser, grade, grade_all
from rlvr_sweeps.grading.latex import tidy
from rlvr_sweeps.grading.numbers import read_number
from tests.conftest import ROOT

THINK = "hm</think>"
REASONS = set(get_args(AnswerReason))
CASES = [json.loads(line) for line in (ROOT / "tests/grading/answers.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        (THINK + r"so \boxed{5}", "correct"),
        (THINK + r"\boxed{ 5 }", "correct"),
        (THINK + r"\boxed{6}", "wrong"),
        (THINK + r"\boxed{5} no, \boxed{6}", "wrong"),  # the last box counts
        (THINK + r"\boxed{\boxed{5}}", "correct"),
        (r"\boxed{5}", "unfinished thinking"),
        (r"\boxed{5}</think>", "no box"),
        (THINK + "5", "no box"),
        (THINK + r"\boxed{5", "no box"),
        (THINK + r"\boxed{}", "unparsable"),
        (THINK + r"\boxed{4}</think>\boxed{5}", "correct"),  # after the last </think>
        ("", "unfinished thinking"),
    ],
)
def test_reasons_of_the_default_policy(completion, reason):
    verdict = grade(completion, "5")
    assert (verdict.reason, verdict.correct) == (reason, reason == "correct")


@pytest.mark.parametrize(
    ("completion", "boxed", "anything"),
    [
        (r"\boxed{5}", "5", "5"),
        (r"\boxed{4} hm</think> 5", "4", "4"),
        ("hm</think> so it is $x^2$, or $5$.", None, "5"),
        (r"as \[\frac{10}{2}\]", None, r"\frac{10}{2}"),
        ("first 4, then 1,005.", None, "1,005"),
        ("I do not know", None, None),
    ],
)
def test_policies_that_do_not_require_finished_thinking_or_a_box(completion, boxed, anything):
    assert extract(completion, "boxed")[0] == boxed
    assert extract(completion, "any")[0] == anything


@pytest.mark.parametrize("why", sorted({case["why"] for case in CASES}))
def test_the_verdicts_of_the_table_of_cases(why):
    cases = [case for case in CASES if case["why"] == why]
    verdicts = grade_all([f"{THINK}\\boxed{{{case['answer']}}}" for case in cases], [case["gold"] for case in cases])
    wrong = [(case, verdict.reason) for case, verdict in zip(cases, verdicts, strict=True) if verdict.reason != case["verdict"]]
    assert not wrong


def test_the_table_has_every_class_of_the_policy():
    assert len(CASES) >= 200 and len({case["why"] for case in CASES}) >= 12
    assert {case["verdict"] for case in CASES} == {"correct", "wrong", "wrong form", "unparsable", "too large", "timeout"}


@given(st.integers(), st.integers())
def test_integers_are_compared_by_value(answer, gold):
    assert grade(f"{THINK}\\boxed{{{answer}}}", str(gold)).correct == (answer == gold)


def test_an_integer_gold_needs_no_parser(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)  # importing it fails
    monkeypatch.setitem(sys.modules, "latex2sympy2_extended", None)
    for answer in ("17", "x=17", r"\frac{34}{2}", "16=17", "0.5=0.6", "=17", r"9^{9^{9^9}}", r"17 \text{ cm}"):
        assert compare_without_parser(answer, "17") is not None


@given(st.fractions(max_denominator=999), st.fractions(max_denominator=999))
def test_fractions_compare_exactly(a, b):
    text = rf"\frac{{{a.numerator}}}{{{a.denominator}}}"
    assert read_number(tidy(text)).value == a
    assert (compare_without_parser(text, f"{b.numerator}/{b.denominator}") == "correct") == (a == b)


FORMATS = [
    "{}",
    " {} ",
    "${}$",
    r"\left({}\right)",
    "{{{}}}",
    r"{}\,",
    r"{}.",
    r"\displaystyle {}",
    r"{} \text{{ cm}}",
    "x = {}",
]


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3), st.sampled_from(FORMATS))
def test_formatting_never_changes_a_verdict(value, template):
    for gold in (f"{value}", f"{value + 1}"):
        assert compare_without_parser(template.format(f"{value}"), gold) == compare_without_parser(f"{value}", gold)


FORMULAS = st.recursive(
    st.sampled_from(["x", "y", "2x", r"x\sqrt{2}", r"\pi"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", r"\cdot "]), inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}"),
        inner.map(lambda text: f"({text})^2"),
    ),
    max_leaves=6,
)
LISTS = st.lists(FORMULAS, min_size=2, max_size=3).map(",".join)
EXPRESSIONS = st.one_of(FORMULAS, LISTS, LISTS.map("({})".format), LISTS.map(r"\{{{}\}}".format))


@settings(max_examples=60, deadline=None)
@given(EXPRESSIONS)
def test_an_answer_equals_itself_in_another_spelling(text):
    """Compare a text with another spelling of the same value, so that both are parsed."""
    respelled = text.replace("+", " + 0 + ").replace("(", r"\left(").replace(")", r"\right)").replace(r"\frac", r"1\cdot\dfrac")
    reasons = compare_all({(text, text): None, (respelled, text): None})
    assert set(reasons.values()) <= {"correct"}


TOKENS = [*"{}()[]^_=,+.!| ", "1", "17", "x", r"\frac", r"\text", r"\sqrt", r"\pm", r"\le", r"\%", r"\{", r"\}", r"\in"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=60), st.sampled_from([1, 1, 40]))
def test_no_answer_raises_an_exception_in_the_calling_process(tokens, times):
    """Compare answers with a plain number, and search their boxes. A chain with a side to compute is left to the sandbox."""
    text = "".join(tokens) * times
    assert compare_without_parser(text[:1000], "17") in (REASONS if "=" not in text else {*REASONS, None})
    box = boxed_answer("\\boxed{" + text, "last")
    assert box is None or box in text


def test_fuzzed_answers_all_get_a_verdict():
    """Compare 300 texts of LaTeX tokens with formulas in the sandbox. Each comparison takes at most one CPU second."""
    rng = random.Random(0)
    texts = ["".join(rng.choices(TOKENS, k=rng.choice([3, 8, 20, 60]))) for _ in range(300)]
    reasons = compare_all((text, rng.choice([r"\sqrt{2}", "x+1", "(1,2)", r"\{x\}"])) for text in texts)
    assert len(reasons) >= 290 and set(reasons.values()) <= REASONS
    assert compare_all([(r"2\sqrt{2}", r"\sqrt{8}")]) == {(r"2\sqrt{2}", r"\sqrt{8}"): "correct"}


@given(st.text(alphabet="ab{}\\ ", max_size=30))
def test_last_box_returns_balanced_braces(text):
    content = boxed_answer("\\boxed{" + text + "}", "last")
    if balanced(text) and "\\boxed{" not in text:
        assert content == text


def balanced(text: str) -> bool:
    """Return whether the braces of a text are balanced."""
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


def test_sixty_thousand_open_boxes_take_linear_time():
    assert boxed_answer("\\boxed{" * 60_000, "last") is None
    assert boxed_answer("\\boxed{" * 60_000 + "5" + "}" * 60_000, "last") == "5"


def test_an_answer_with_more_digits_than_int_accepts_is_wrong():
    limit = sys.get_int_max_str_digits()
    assert grade(f"{THINK}\\boxed{{{'9' * (limit * 10)}}}", "9").reason == "wrong"


def test_the_configuration_accepts_exactly_the_policies(composer):
    assert composer.point([]).cfg["grading"] == POLICIES[0]
    with pytest.raises(Exception, match="Allowed: boxed_after_thinking, boxed, any"):
        composer.point(["grading=boxd"])


@pytest.mark.slow
def test_parsing_in_two_stages_gives_the_same_expressions(monkeypatch):
    texts = sorted({tidy(case[key]) for case in CASES for key in ("answer", "gold") if len(case[key]) < 200})
    texts = [text for text in texts if not TOO_LARGE.search(text)][::3]
    full = [srepr(read_latex(text, True)) for text in texts]
    monkeypatch.setattr(_Latex2Sympy, "create_parser", _Latex2Sympy.create_parser)  # restored after the test
    patches.parse_latex_in_two_stages()
    assert [srepr(read_latex(text, True)) for text in texts] == full
