"""Test that gold answers which can be compared only as text are named, and no others."""

import json

import pytest

from rlvr_sweeps.assets.problems import warn_of_unreadable_golds
from rlvr_sweeps.grading.golds import unreadable
from tests.conftest import ROOT

GOLDS = {json.loads(line)["gold"] for line in (ROOT / "tests/grading/answers.jsonl").read_text().splitlines()}


@pytest.mark.slow
def test_of_the_golds_of_the_table_only_an_abbreviated_list_is_unreadable():
    assert unreadable(sorted(GOLDS)) == [r"1,2,\ldots,10"]


@pytest.mark.parametrize(
    "gold",
    [
        r"\frac{1}{", r"f: \mathbb{R} \to \mathbb{R}", r"a_{n+1} = \mathrm{fib}(",
        "x" * 1001,
    ],
)  # fmt: skip
def test_golds_that_only_their_own_text_answers(gold):
    assert unreadable(["17", gold, r"\frac{1}{2}"]) == [gold]


def test_problems_with_such_golds_are_named_and_counted(capsys):
    golds = {"aa": "17", "bb": r"\frac{1}{", "cc": r"\frac{1}{", "dd": r"\text{even}"}
    assert warn_of_unreadable_golds(golds, "set.jsonl") == 2
    printed = capsys.readouterr().out
    assert "2 of 4 gold answers of set.jsonl can be compared only as text" in printed
    assert "problem bb: '\\\\frac{1}{'; problem cc" in printed
    assert warn_of_unreadable_golds({"aa": "17"}, "set.jsonl") == 0
    assert not capsys.readouterr().out
