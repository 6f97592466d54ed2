"""Test that the grader accepts no gold answer that was changed in one place, and no gold answer of another problem.

The gold answers are those of answers.jsonl. A changed one has another digit, sign, function, letter, or bracket.
"""

import json
import random
import re

import pytest

from rlvr_sweeps.grading.grader import compare_all
from rlvr_sweeps.grading.latex import tidy
from rlvr_sweeps.grading.numbers import read_number
from tests.conftest import ROOT

ROWS = [json.loads(line) for line in (ROOT / "tests/grading/answers.jsonl").read_text().splitlines()]
GOLDS = sorted({row["gold"] for row in ROWS if len(row["gold"]) < 200})
CHANGES = {
    "+": "-", "-": "+", r"\sin": r"\cos", r"\cos": r"\sin", "<": ">", ">": "<", "x": "y", "n": "m", "[": "(", "]": ")",
}  # fmt: skip
EQUAL = [  # gold answers of different rows that are the same answer
    {r"|x-3|", r"|3-x|"}, {"n", r"\lfloor n/2\rfloor+\lceil n/2\rceil"}, {"0.28", r"\frac{7}{25}"}, {"1.5", r"\frac{3}{2}"},
    {"1/2", r"\frac{1}{2}", r"\frac12", "1/2."}, {r"1\pm\sqrt2", r"x=1\pm\sqrt2"}, {"1,2", "(1,2)"}, {"a=2,b=1", "2,1"},
    {"np.exp(2)", "e^2"}, {"x=3", "3"}, {"x=5", "5"}, {r"\pi/2", r"\frac{\pi}{2}"}, {r"(3,\infty)", "x>3"},
    {r"\binom{10}{3}", "120"}, {"(3,2,1)", "3,2,1"}, {r"\frac{2^{100}-1}{2^{100}}", r"1-\frac{1}{2^{100}}"},
    {"1,2", "a=1,b=2", r"\begin{pmatrix} 1 \\[2pt] 2 \end{pmatrix}", "(x,y)=(1,2)"}, {r"\frac{1}{\sqrt2}", r"\frac{\sqrt2}{2}"},
    {r"\frac{3}{2}", "3:2"}, {r"12.5\%", "12.5"}, {r"\frac13", "1/3", "0.333333"},
    {r"\frac{n(n-1)}{2}", r"\binom{n}{2}"}, {r"\frac{1}{2}", r"\cos\frac{\pi}{3}"},
]  # fmt: skip
LETTER = re.compile(r"[A-Za-zμΩ]")
ROW_GAP = re.compile(r"\[\d+pt\]")  # the space between the rows of a matrix is no part of its value


def has_unit(gold):
    """Return whether a gold answer is a number with a unit, which another answer may omit."""
    return read_number(tidy(gold)) is not None and bool(LETTER.search(gold.replace("frac", "").replace("times", "")))


def spelling(gold):
    """Return one text for spellings that differ in spaces and braces only."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", tidy(gold))


def changed(gold):
    """Yield the texts that differ from a gold answer in one place."""
    for digit in re.finditer(r"\d", gold):
        yield gold[: digit.start()] + str((int(digit[0]) + 1) % 10) + gold[digit.end() :]
    for old, new in CHANGES.items():
        start = gold.find(old)
        beside = gold[max(0, start - 1) : start] + gold[start + 1 : start + 2]
        if start >= 0 and not (old in "xn" and re.search(r"[A-Za-z\\]", beside)):  # not a letter of a word or command
            yield gold[:start] + new + gold[start + len(old) :]


def groups(pairs):
    """Return the sets of answers that are connected by pairs of equal answers."""
    joined = []
    for pair in pairs:
        touched = [group for group in joined if group & pair]
        joined = [group for group in joined if not group & pair] + [set(pair).union(*touched)]
    return joined


@pytest.mark.slow
def test_no_gold_answer_that_was_changed_in_one_place_is_accepted():
    pairs = {(text, gold) for gold in GOLDS for text in changed(gold) if text != gold and not ROW_GAP.search(gold)}
    reasons = compare_all(pairs)
    assert len(pairs) > 1000
    assert not [pair for pair, reason in reasons.items() if reason == "correct"]


@pytest.mark.exhaustive
def test_no_gold_answer_of_another_problem_is_accepted():
    rng = random.Random(0)
    golds = [gold for gold in GOLDS if not has_unit(gold)]
    pairs = {tuple(rng.sample(golds, 2)) for _ in range(20_000)}
    accepted = [
        set(pair) for pair, reason in compare_all(pairs).items() if reason == "correct" and len(set(map(spelling, pair))) == 2
    ]
    same = groups([*EQUAL, *({row["answer"], row["gold"]} for row in ROWS if row["verdict"] == "correct")])
    assert not [pair for pair in accepted if not any(pair <= group for group in same)]
