"""Compare one answer with the gold answer: structure and plain numbers here, single expressions in `expressions.py`.

math-verify alone accepts answers that a human reader would reject: an equation or a chain that ends in the gold answer (16=17),
a list that repeats it (17,17), the problem itself (10+7, an integral), an interval instead of a set. Therefore this module
splits lists, sets, tuples and intervals and compares them element by element, and it requires one literal number where the
gold answer is a plain number. `judge` may hang or exhaust memory on a hostile expression: call it through `sandbox.py`.
"""

import re
from fractions import Fraction
from typing import Literal

from rlvr_sweeps.grading.expressions import ExpressionReason, compare_expressions, constant_value, equal_constants, is_rounded
from rlvr_sweeps.grading.latex import tidy
from rlvr_sweeps.grading.numbers import LETTER_UNIT, read_number
from rlvr_sweeps.grading.regions import as_region, split_outside
from rlvr_sweeps.grading.rules import DEFAULT_RULES, Rules
from rlvr_sweeps.grading.structure import (
    RELATION,
    cases,
    chain_sides,
    coordinates,
    split_elements,
    text_answer,
    vector_as_tuple,
    without_name,
    without_names,
)

AnswerReason = Literal[ExpressionReason, "timeout", "over budget"]
CLOCK = re.compile(r"\s*(?:\\text\s*\{\s*)?\b(?P<half>[ap])\.?\s?m\b\.?\s*\}?\s*\Z", re.IGNORECASE)
LISTED = re.compile(r"\d{1,3}(?:,\d{3})+")  # 70,110: one number, or two
NO_VARIABLE = re.compile(r"\\(?:mathbb|text)\s*\{[^{}]*\}|\\mathbb\s*R")
OR, VOWEL = re.compile(r"(?<![A-Za-z])or(?![A-Za-z])"), re.compile("[aeiouAEIOU]")
ONE_SIGN = re.compile(r"=|<|>|\\(?:le|ge)(?![A-Za-z])")
CHOICE = re.compile(r"(?:\\text\s*\{\s*\((?P<text>[A-J])\)\s*\}\s*|\((?P<letter>[A-J])\)\s+)(?P<value>\S.*)")  # (B) 12
ROMAN = re.compile("[IVXLC]+")
CUP = re.compile(r"\\cup(?![A-Za-z])")
ROUNDED = re.compile(r"[+-]?\d*\.\d+")  # a decimal as a side of a chain
AROUND_SIGNS = re.compile(r"\s*([^\w\s\\])\s*")  # spaces without meaning; the spaces in 1 1/2 and \sin x are not matched


def judge(answer: str, gold: str, rules: Rules = DEFAULT_RULES) -> AnswerReason:
    """Compare an answer with the gold answer, both LaTeX without a box. Deterministic; may not return on a hostile answer."""
    answer, gold = tidy(answer), tidy(gold)
    if not answer:
        return "unparsable"
    if compact(answer) == compact(gold) or ("\\text" in gold and normalised_text(answer) == normalised_text(gold)):
        return "correct"
    return compare(answer, gold, rules)


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


def needs_parser(answer: str, rules: Rules = DEFAULT_RULES) -> bool:
    """Return whether `judge` must compute a side of the answer even for a plain number, as in \\binom{5}{2}=10."""
    sides = chain_sides(tidy(answer))
    literal = [read_number(side) is not None for side in sides]
    if rules.arithmetic == "accept" and not all(literal):
        return True
    return len(sides) > 1 and all(sides) and any(literal) and not all(literal)


def compare(answer: str, gold: str, rules: Rules) -> AnswerReason:
    """Compare two tidied texts: remove names such as x=, split the structure, compare the elements."""
    if compact(answer) == compact(gold) or is_turned(answer, gold):
        return "correct"
    if reason := compare_coordinates(answer, gold, rules):
        return reason
    if relates_letters(answer) and relates_letters(gold) and compare_expressions(answer, gold) == "correct":
        return "correct"
    if (pieces := cases(answer)) and (gold_pieces := cases(gold)):
        return compare_cases(pieces, gold_pieces, rules)
    if gold_clock := CLOCK.search(gold):
        if (clock := CLOCK.search(answer)) and clock["half"].lower() != gold_clock["half"].lower():
            return "wrong"
        answer, gold = CLOCK.sub("", answer).strip(), CLOCK.sub("", gold).strip()
    if (choice := CHOICE.fullmatch(answer)) and not CHOICE.fullmatch(gold):
        letter = choice["text"] or choice["letter"]
        answer = letter if re.fullmatch("[A-J]", text_answer(gold) or gold) else choice["value"]
    region, gold_region = as_region(answer), as_region(gold)
    if region != answer and gold_region != gold and letters(answer) and letters(gold) and letters(answer) != letters(gold):
        return "wrong"  # y>3 for x>3
    gold_value = without_name(gold_region)
    answer, gold = without_names(region, gold_region)
    if not RELATION.search(gold) and not is_list(answer) and len(sides := chain_sides(answer)) > 1:
        return compare_chain(sides, gold, rules)
    if gold_value != gold and RELATION.search(answer) and not RELATION.search(gold_value) and not letters(gold_value):
        return "wrong"  # y=5, or the unsolved 2x+1=11, for x=5
    if OR.search(answer) and split_elements(gold)[0] == "()":
        return "wrong form"
    gold_number = None if LETTER_UNIT.search(gold) else read_number(gold)  # 2 m is two times m as well as two metres
    if ROMAN.fullmatch(answer) and ROMAN.fullmatch(gold):
        return "correct" if answer == gold else "wrong"
    if gold_number is not None:
        answer_number = read_number(answer)
        if (
            answer_number is None
            and rules.arithmetic == "accept"
            and (equal_constants(answer, gold) or is_within_tolerance(answer, gold, rules, gold_number.rounded))
        ):
            return "correct"
        if answer_number is None and not (LISTED.fullmatch(gold) and len(split_elements(answer, as_list=True)[1]) > 1):
            return "wrong form"
        if answer_number is not None:
            return "correct" if rules.equal_numbers(answer_number, gold_number) else "wrong"
    answer_text, gold_text = text_answer(answer), text_answer(gold)
    if is_list(gold) and is_list(answer):
        answer_text = gold_text = None
    if (answer_text and gold_text) or (answer_text and "\\text" in answer) or (gold_text and "\\text" in gold):
        first, second = answer_text or answer, gold_text or gold
        if first == second or (VOWEL.search(first) and first.lower() == second.lower()):
            return "correct"
        if "\\text" in answer + gold or VOWEL.search(first) or VOWEL.search(second):
            return "wrong"
    parts, expected = (split_outside(text, CUP) for text in (answer, gold))
    if len(expected) > 1 and len(parts) == len(expected) and all(part[:1] in "([\\" for part in parts):
        reason = compare_elements("", parts, "", expected, rules)
        if reason == "correct":
            return reason
    if rules.vectors == "either" and (r"\begin" in answer) != (r"\begin" in gold):
        as_tuples = vector_as_tuple(answer), vector_as_tuple(gold)
        if all(split_elements(text)[0] == "()" for text in as_tuples):
            answer, gold = as_tuples
    gold_kind, gold_parts = split_elements(gold, as_list=gold_number is not None)
    answer_kind, answer_parts = split_elements(answer, as_list=bool(gold_kind) or len(gold_parts) > 1)
    if answer_kind or gold_kind or len(answer_parts) > 1 or len(gold_parts) > 1:
        return compare_elements(answer_kind, answer_parts, gold_kind, gold_parts, rules)
    reason = compare_expressions(answer, gold)
    return "correct" if reason == "wrong" and is_within_tolerance(answer, gold, rules, rounded=False) else reason


def is_within_tolerance(answer: str, gold: str, rules: Rules, rounded: bool) -> bool:
    """Return whether two expressions have values that differ by no more than the tolerance of the rules."""
    if rules.tolerance == "exact":
        return False
    values = [constant_value(text) for text in (answer, gold)]
    return values[0] is not None and values[1] is not None and rules.is_within_tolerance(values[0], values[1], rounded)


def can_be_compared(gold: str) -> bool:
    """Return whether a gold answer can be compared otherwise than as text. May not return on a hostile one.

    That is so for numbers, for words, and for formulas and relations that the parser reads and whose values can be computed.
    Of a list, a tuple or a union of intervals, each element must be so.
    """
    gold = tidy(gold)
    if read_number(gold) is not None or text_answer(gold):
        return True
    value = without_name(as_region(CLOCK.sub("", gold).strip()))
    if read_number(value) is not None:
        return True
    pieces = split_outside(value, CUP)
    if len(pieces) > 1:
        return all(can_be_compared(piece) for piece in pieces)
    if by_cases := cases(value):
        return all(can_be_compared(piece) for pair in by_cases for piece in pair)
    if named := coordinates(value):
        return all(can_be_compared(element) for _, element in named)
    kind, parts = split_elements(vector_as_tuple(value))
    if kind or len(parts) > 1:
        return all(can_be_compared(part) for part in parts)
    return compare_expressions(value, value) == "correct"


def letters(text: str) -> set[str]:
    """Return the single letters of a text outside words, commands and \\mathbb{R}."""
    return set(re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", NO_VARIABLE.sub(" ", text)))


def is_list(text: str) -> bool:
    """Return whether a text has several elements outside brackets."""
    return len(split_elements(text, as_list=True)[1]) > 1 and not split_elements(text)[0]


def relates_letters(text: str) -> bool:
    """Return whether a text is one equation or inequality with letters on both sides, such as y=1/x, and no name's value."""
    sides = ONE_SIGN.split(text)
    return len(sides) == 2 and (bool(re.search("[A-Za-z]", sides[1])) or len(re.findall("[A-Za-z]", sides[0])) > 1)


def is_turned(answer: str, gold: str) -> bool:
    """Return whether two equations have the same sides in another order."""
    sides, gold_sides = (compact(text).split("=") for text in (answer, gold))
    return len(sides) == len(gold_sides) == 2 and sides == gold_sides[::-1]


def compare_coordinates(answer: str, gold: str, rules: Rules) -> AnswerReason | None:
    """Compare named coordinates by name, or with an unnamed tuple in the order of the names; None where neither has names."""
    pairs, gold_pairs = coordinates(answer), coordinates(gold)
    named, gold_named = dict(pairs), dict(gold_pairs)
    if pairs and (len(named) < len(pairs) or OR.search(answer)) and split_elements(gold)[0] == "()":
        return "wrong"  # x=1, x=2 are two solutions, not a point
    if len(gold_named) < len(gold_pairs) or (len(named) < len(pairs) and not gold_pairs):
        return None
    if pairs and gold_pairs:
        if named.keys() != gold_named.keys() or len(named) < len(pairs):
            return "wrong"
        reasons = [compare(named[name], gold_named[name], rules) for name in gold_named]
    elif pairs or gold_pairs:
        kind, parts = split_elements(gold if pairs else answer, as_list=True)
        values = [value for _, value in in_order(pairs or gold_pairs)]
        if kind not in ("()", "") or len(parts) != len(values) or (kind == "" and pairs):
            return None
        matched = zip(values, parts, strict=True)
        reasons = [compare(value, part, rules) if pairs else compare(part, value, rules) for value, part in matched]
    else:
        return None
    return next((reason for reason in reasons if reason != "correct"), "correct")


def compare_cases(pieces: list[tuple[str, str]], gold_pieces: list[tuple[str, str]], rules: Rules) -> AnswerReason:
    """Compare two formulas that are defined by cases: each value and its condition, in any order."""
    remaining = list(pieces)
    for gold_value, gold_condition in gold_pieces:
        match = next(
            (
                piece
                for piece in remaining
                if compare(piece[1], gold_condition, rules) == compare(piece[0], gold_value, rules) == "correct"
            ),
            None,
        )
        if match is None:
            return "wrong"
        remaining.remove(match)
    return "wrong" if remaining else "correct"


def in_order(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return (name, value) pairs by their names where these are Latin letters; (r, \\theta) and the like keep their order."""
    return sorted(pairs) if all(re.fullmatch("[A-Za-z]", name) for name, _ in pairs) else pairs


def compare_chain(sides: list[str], gold: str, rules: Rules) -> AnswerReason:
    """Compare a chain such as \\frac12 = 0.5 or \\sqrt8 = 2\\sqrt2 \\approx 2.83, whose sides must state one value.

    All exact sides must be equal, and every decimal must be their value, rounded or cut to its digits; decimals without an
    exact side must be equal. One of the sides must be the answer.
    """
    decimals = [side for side in sides if ROUNDED.fullmatch(side)]
    exact = [side for side in sides if side not in decimals] or decimals[:1]
    if not all(sides) or not all(has_same_value(exact[0], side) for side in exact[1:]):
        return "wrong form"
    if exact[0] in decimals:
        is_consistent = len({read_number(side) for side in decimals}) == 1
    else:
        is_consistent = all(is_rounded_value(side, exact[0]) for side in decimals)
    if not is_consistent:
        return "wrong form"
    reasons = [compare(side, gold, rules) for side in sides]
    return "correct" if "correct" in reasons else reasons[-1]


def has_same_value(first: str, second: str) -> bool:
    """Return whether two exact sides of a chain are equal numbers."""
    numbers = read_number(first), read_number(second)
    if numbers[0] and numbers[1]:
        return numbers[0].value == numbers[1].value
    return equal_constants(first, second)


def is_rounded_value(decimal: str, exact: str) -> bool:
    """Return whether a decimal with one digit after the point, or two significant ones, is `exact`, rounded or cut to them."""
    places, significant = len(decimal.partition(".")[2]), decimal.lstrip("+-0.").replace(".", "")
    if len(significant) < (1 if places == 1 else 2):
        return False
    number, value = read_number(exact), Fraction(decimal)
    if number is not None:
        return not number.percent and abs(number.value - value) < Fraction(1, 10**places)
    return is_rounded(value, places, exact)


def compare_elements(
    answer_kind: str, answer_parts: list[str], gold_kind: str, gold_parts: list[str], rules: Rules
) -> AnswerReason:
    """Compare lists and sets in any order, one to one; tuples and intervals in order, with the same brackets."""
    unordered = {"", "{}"}
    if len(answer_parts) != len(gold_parts):
        return "wrong form" if len(gold_parts) == 1 and not gold_kind else "wrong"
    if gold_kind in unordered and (answer_kind in unordered or (gold_kind == "" and answer_kind == "()")):
        remaining = list(answer_parts)
        for gold_part in gold_parts:
            match = next((part for part in remaining if compare(part, gold_part, rules) == "correct"), None)
            if match is None:
                return "wrong"
            remaining.remove(match)
        return "correct"
    if answer_kind not in (gold_kind, "") or (answer_kind == "" and gold_kind != "()"):
        return "wrong"  # the answer may omit the brackets of a tuple, not those of an interval, and not replace them
    reasons = [compare(part, gold_part, rules) for part, gold_part in zip(answer_parts, gold_parts, strict=True)]
    return next((reason for reason in reasons if reason != "correct"), "correct")
