"""Whether an answer is the gold: structure and plain numbers here, mathematics by math-verify.

What math-verify rewards and no reader would: an equation or a chain that ends in the gold (16=17), a list that repeats it
(17,17), the question given back (10+7, an integral), an interval for a set. So lists, sets, tuples and intervals are taken
apart here and compared element by element, a plain number is answered by one literal number, and only single expressions are
left to mathematics (`expressions.py`). `judge` may hang or eat memory on a hostile expression: call it through `judging.py`.
"""

import re
from typing import Literal

from rlvr_sweeps.grading.expressions import same_expression
from rlvr_sweeps.grading.latex import tidy
from rlvr_sweeps.grading.numbers import number
from rlvr_sweeps.grading.structure import as_interval, as_word, elements, without_names

Reason = Literal["correct", "wrong", "wrong form", "unparsable", "too large", "timeout"]
AROUND_SIGNS = re.compile(r"\s*([^\w\s\\])\s*")  # spaces that say nothing; those in 1 1/2 and \sin x do


def judge(answer: str, gold: str) -> Reason:
    """One answer against one gold, both LaTeX without a box. Deterministic; it may not return on a hostile answer."""
    answer, gold = tidy(answer), tidy(gold)
    if not answer:
        return "unparsable"
    if squeezed(answer) == squeezed(gold) or ("\\text" in gold and bare(answer) == bare(gold)):
        return "correct"
    return same(answer, gold)


def canonical_form(answer: str) -> str:
    """One text for answers that are plainly the same: a number's value, else the tidied LaTeX without idle spaces."""
    tidied = tidy(answer)
    read = number(tidied)
    return str(read.value) if read else squeezed(tidied)


def squeezed(text: str) -> str:
    return AROUND_SIGNS.sub(r"\1", text)


def bare(text: str) -> str:
    """The words of a text answer, such as June 20, whatever the case and the spaces."""
    return " ".join(re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).lower().split())


def plain(gold: str) -> bool:
    """Whether `gold` is one plain number, so that `judge` needs no parser."""
    return number(tidy(gold)) is not None


def same(answer: str, gold: str) -> Reason:
    """Two tidied texts: names stripped, structure taken apart, elements compared."""
    answer, gold = without_names(as_interval(answer), as_interval(gold))
    expected = number(gold)
    if expected is not None:
        given = number(answer)
        if given is None:
            return "wrong form"
        return "correct" if given.same(expected) else "wrong"
    words, expected_words = as_word(answer), as_word(gold)
    if (words and expected_words) or (words and "\\text" in answer) or (expected_words and "\\text" in gold):
        return "correct" if (words or answer).lower() == (expected_words or gold).lower() else "wrong"
    expected_kind, expected_parts = elements(gold)
    kind, parts = elements(answer, a_list=bool(expected_kind) or len(expected_parts) > 1)
    if kind or expected_kind or len(parts) > 1 or len(expected_parts) > 1:
        return same_elements(kind, parts, expected_kind, expected_parts)
    return same_expression(answer, gold)


def same_elements(kind: str, given: list[str], expected_kind: str, expected: list[str]) -> Reason:
    """Lists and sets match in any order, one to one; tuples and intervals in order, with the same brackets."""
    unordered = {"", "{}"}
    if len(given) != len(expected):
        return "wrong form" if len(expected) == 1 and not expected_kind else "wrong"
    if expected_kind in unordered and kind in unordered:
        left = list(given)
        for element in expected:
            found = next((other for other in left if same(other, element) == "correct"), None)
            if found is None:
                return "wrong"
            left.remove(found)
        return "correct"
    if kind not in (expected_kind, ""):  # the brackets of an ordered gold may be left out, never exchanged
        return "wrong"
    reasons = [same(one, other) for one, other in zip(given, expected, strict=True)]
    return next((reason for reason in reasons if reason != "correct"), "correct")
