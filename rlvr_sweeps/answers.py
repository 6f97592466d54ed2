"""Whether an answer is the gold: structure and plain numbers here, mathematics by math-verify.

What math-verify rewards and no reader would: an equation or a chain that ends in the gold (16=17), a list that repeats it
(17,17), the question given back (10+7, an integral), an interval for a set. So lists, sets, tuples and intervals are taken
apart here and compared element by element, a plain number is answered by one literal number, and math-verify sees only
single expressions. `judge` may hang or eat memory on a hostile expression: call it through `judging.py`.
"""

import re
from typing import Literal

from rlvr_sweeps.literals import number, tidy
from rlvr_sweeps.structure import RELATION, as_interval, as_word, depth, elements, without_names

Reason = Literal["correct", "wrong", "wrong form", "unparsable", "too large", "timeout"]
CLOSE = 1e-6  # relative; math-verify rounds to six decimals, where 1/2004! and 1/2006! are both 0
POINTS = (("0.3719", "-1.2317", "2.7131"), ("-0.6173", "1.4231", "0.8377"), ("1.9273", "0.5471", "-2.3911"))
DEEPEST = 30  # brackets within brackets
TOO_LARGE = re.compile(  # what takes longer than any answer deserves: towers of powers, huge powers, factorials, binomials
    r"\^\s*\{?\s*\d+\s*\^|\d\s*\^\s*\{?\s*-?\d{6,}|[)}\]]\s*\^\s*\{?\s*-?\d{3,}|\d{6,}\s*\}?\)?\s*!|!\s*\)?\s*!|\\binom\s*\{\s*\d{6,}"
)
TO_BE_WORKED_OUT = re.compile(r"\\(?:int|iint|sum|prod|lim|max|min|sup|inf|det|gcd|lcm)(?![A-Za-z])")
BASE = re.compile(r"(\d+)\s*_\s*\{?\s*(\d+)\s*\}?\Z")
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
DEGREES = re.compile(r"\{?(\d+(?:\.\d+)?)\}?\s*\\degree")  # math-verify reads 15^\circ as 15
AROUND_SIGNS = re.compile(r"\s*([^\w\s\\])\s*")  # spaces that say nothing; those in 1 1/2 and \sin x do
UNIT_AFTER_FORMULA = re.compile(r"\\text\s*\{[^{}\d]*\}(?:\s*\^\s*(?:\{[23]\}|[23]))?\s*\Z")


def judge(answer: str, gold: str) -> Reason:
    """One answer against one gold, both LaTeX without a box. Deterministic; it may not return on a hostile answer."""
    answer, gold = tidy(answer), tidy(gold)
    if not answer:
        return "unparsable"
    if AROUND_SIGNS.sub(r"\1", answer) == AROUND_SIGNS.sub(r"\1", gold):
        return "correct"
    return same(answer, gold)


def canonical_form(answer: str) -> str:
    """One text for answers that are plainly the same: a number's value, else the tidied LaTeX without idle spaces."""
    tidied = tidy(answer)
    read = number(tidied)
    return str(read.value) if read else AROUND_SIGNS.sub(r"\1", tidied)


def plain(gold: str) -> bool:
    """Whether `gold` is one plain number, so that `judge` needs no parser."""
    return number(tidy(gold)) is not None


def same(answer: str, gold: str) -> Reason:
    """Two tidied texts: names stripped, structure taken apart, elements compared."""
    answer, gold = without_names(answer, gold)
    expected = number(gold)
    if expected is not None:
        given = number(answer)
        if given is None:
            return "wrong form"
        return "correct" if given.same(expected) else "wrong"
    words, expected_words = as_word(answer), as_word(gold)
    if (words and expected_words) or (words and "\\text" in answer) or (expected_words and "\\text" in gold):
        return "correct" if (words or answer).lower() == (expected_words or gold).lower() else "wrong"
    answer, gold = as_interval(answer), as_interval(gold)
    kind, parts = elements(answer)
    expected_kind, expected_parts = elements(gold)
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


def same_expression(answer: str, gold: str) -> Reason:
    """Two single expressions, by math-verify."""
    if bool(RELATION.search(answer)) != bool(RELATION.search(gold)):
        return "wrong form"
    if TO_BE_WORKED_OUT.search(answer) and not TO_BE_WORKED_OUT.search(gold):
        return "wrong form"
    if (one := BASE.match(gold)) and (other := BASE.match(answer) or re.match(r"(\d+)()\Z", answer)):
        return "correct" if one[1] == other[1] and other[2] in ("", one[2]) else "wrong"
    if TOO_LARGE.search(answer) or depth(answer) > DEEPEST:
        return "too large"
    from math_verify import verify
    from math_verify.grader import should_treat_as_complex

    answer, gold = UNIT_AFTER_FORMULA.sub("", answer), UNIT_AFTER_FORMULA.sub("", gold)
    real = not (should_treat_as_complex(answer) or should_treat_as_complex(gold))  # a real x is not a complex x to sympy
    expected, given = parsed(gold, real), parsed(answer, real)
    if not given:
        return "unparsable"
    if verify(expected, given, timeout_seconds=None):
        return "wrong" if expected and far_apart(expected[0], given[0]) else "correct"
    return "correct" if expected and agree_everywhere(expected[0], given[0]) else "wrong"


def parsed(text: str, real: bool) -> list[object]:
    """latex2sympy's reading of one expression; empty where it has none.

    By itself rather than by math_verify.parse, which takes R for r (so that R-r is 0), the g of m g for grams, and falls back
    to a grammar that evaluates Python.
    """
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    if TRIGONOMETRY.search(text):
        text = DEGREES.sub(r"{\\frac{\1\\pi}{180}}", text)
    spelled = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    text = normalize_latex(text.replace(r"\degree", ""), spelled)
    try:
        reading = latex2sympy(
            text, is_real=real, normalization_config=None, conversion_config=ConversionConfig(lowercase_symbols=False)
        )
    except Exception:  # antlr and sympy raise whatever they like
        return []
    return [] if reading is None else [reading]


def far_apart(one: object, other: object) -> bool:
    """Whether two numbers, equal after math-verify's rounding, differ by more than CLOSE of their size."""
    import sympy

    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)) or one.free_symbols or other.free_symbols:
        return False
    a, b = sympy.N(one), sympy.N(other)
    return bool(a.is_number and b.is_number and a.is_finite and b.is_finite and abs(a - b) > CLOSE * abs(a))


def agree_everywhere(one: object, other: object) -> bool:
    """Whether two formulas in the same variables agree at three points, of both signs, to fifteen digits.

    math-verify simplifies, and misses identities such as \\tan(x/2) = (1-\\cos x)/\\sin x. Schwartz 1980, Zippel 1979.
    """
    import sympy

    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)):
        return False
    variables = sorted(one.free_symbols, key=str)
    if not variables or one.free_symbols != other.free_symbols:
        return False
    for point in POINTS:
        values = {symbol: sympy.Float(point[place % 3], 30) + place for place, symbol in enumerate(variables)}
        a, b = one.evalf(30, subs=values), other.evalf(30, subs=values)
        if not (a.is_number and b.is_number and a.is_finite and b.is_finite and abs(a - b) <= 1e-15 * abs(a)):
            return False
    return True
