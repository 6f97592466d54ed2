"""Compare one answer with the gold answer: structure and plain numbers here, single expressions in `expressions.py`.

math-verify alone accepts answers that a human reader would reject: an equation or a chain that ends in the gold answer (16=17),
a list that repeats it (17,17), the problem itself (10+7, an integral), an interval instead of a set. Therefore this module
splits lists, sets, tuples and intervals and compares them element by element, and it requires one literal number where the
gold answer is a plain number. `judge` may hang or exhaust memory on a hostile expression: call it through `sandbox.py`.
"""

import re
from typing import Literal

from rlvr_sweeps.grading.expressions import ExpressionReason, compare_expressions
from rlvr_sweeps.grading.latex import tidy
from rlvr_sweeps.grading.numbers import read_number
from rlvr_sweeps.grading.structure import as_interval, split_elements, text_answer, without_names

AnswerReason = Literal[ExpressionReason, "timeout"]
AROUND_SIGNS = re.compile(r"\s*([^\w\s\\])\s*")  # spaces without meaning; the spaces in 1 1/2 and \sin x are not matched


def judge(answer: str, gold: str) -> AnswerReason:
    """Compare an answer with the gold answer, both LaTeX without a box. Deterministic; may not return on a hostile answer."""
    answer, gold = tidy(answer), tidy(gold)
    if not answer:
        return "unparsable"
    if compact(answer) == compact(gold) or ("\\text" in gold and normalised_text(answer) == normalised_text(gold)):
        return "correct"
    return compare(answer, gold)


def canonical_form(answer: str) -> str:
    """Return one text for all spellings of an answer: a number's value, else the tidied LaTeX without idle spaces."""
    tidied = tidy(answer)
    parsed = read_number(tidied)
    return str(parsed.value) if parsed else compact(tidied)


def compact(text: str) -> str:
    """Remove the spaces around signs."""
    return AROUND_SIGNS.sub(r"\1", text)


def normalised_text(text: str) -> str:
    """Return a text answer, such as June 20, in lower case, with single spaces and without \\text{…}."""
    return " ".join(re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).lower().split())


def is_plain_number(gold: str) -> bool:
    """Return whether `gold` is one plain number, so that `judge` needs no parser."""
    return read_number(tidy(gold)) is not None


def compare(answer: str, gold: str) -> AnswerReason:
    """Compare two tidied texts: remove names such as x=, split the structure, compare the elements."""
    answer, gold = without_names(as_interval(answer), as_interval(gold))
    gold_number = read_number(gold)
    if gold_number is not None:
        answer_number = read_number(answer)
        if answer_number is None:
            return "wrong form"
        return "correct" if answer_number.matches(gold_number) else "wrong"
    answer_text, gold_text = text_answer(answer), text_answer(gold)
    if (answer_text and gold_text) or (answer_text and "\\text" in answer) or (gold_text and "\\text" in gold):
        return "correct" if (answer_text or answer).lower() == (gold_text or gold).lower() else "wrong"
    gold_kind, gold_parts = split_elements(gold)
    answer_kind, answer_parts = split_elements(answer, as_list=bool(gold_kind) or len(gold_parts) > 1)
    if answer_kind or gold_kind or len(answer_parts) > 1 or len(gold_parts) > 1:
        return compare_elements(answer_kind, answer_parts, gold_kind, gold_parts)
    return compare_expressions(answer, gold)


def compare_elements(answer_kind: str, answer_parts: list[str], gold_kind: str, gold_parts: list[str]) -> AnswerReason:
    """Compare lists and sets in any order, one to one; tuples and intervals in order, with the same brackets."""
    unordered = {"", "{}"}
    if len(answer_parts) != len(gold_parts):
        return "wrong form" if len(gold_parts) == 1 and not gold_kind else "wrong"
    if gold_kind in unordered and answer_kind in unordered:
        remaining = list(answer_parts)
        for gold_part in gold_parts:
            match = next((answer_part for answer_part in remaining if compare(answer_part, gold_part) == "correct"), None)
            if match is None:
                return "wrong"
            remaining.remove(match)
        return "correct"
    if answer_kind not in (gold_kind, ""):  # the answer may omit the brackets of a tuple or interval, not replace them
        return "wrong"
    reasons = [compare(answer_part, gold_part) for answer_part, gold_part in zip(answer_parts, gold_parts, strict=True)]
    return next((reason for reason in reasons if reason != "correct"), "correct")
