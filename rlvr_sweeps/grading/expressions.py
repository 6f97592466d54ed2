"""Compare two single expressions: parsed by latex2sympy, compared by value where they have one, else by math-verify.

Two formulas in the same variables are equal if their values agree at three points of both signs (Schwartz 1980, Zippel 1979).
This takes milliseconds, whereas simplification may miss an identity or never end. Exact numbers must be exactly equal; where
one side has a decimal, math-verify's tolerance applies: six decimals and six significant digits.
"""

import re
from typing import Any, Literal

from rlvr_sweeps.grading.numbers import read_number
from rlvr_sweeps.grading.structure import RELATION, bracket_depth

ExpressionReason = Literal["correct", "wrong", "wrong form", "unparsable", "too large"]
RELATIVE_TOLERANCE = 1e-6  # beside math-verify's six decimals, under which 1/2004! and 1/2006! are both 0
POINTS = (("0.3719", "-1.2317", "2.7131"), ("-0.6173", "1.4231", "0.8377"), ("1.9273", "0.5471", "-2.3911"))
PRECISION = 30  # digits to which values are computed
MAX_DEPTH = 30  # nested brackets
TOO_LARGE = re.compile(  # expressions too expensive to evaluate: towers of powers, huge powers, factorials, binomials
    r"\^[\s{(]*\d+\s*\^|\d\s*\^[\s{(]*-?\d{5,}|[)}\]]\s*\^[\s{(]*-?\d{3,}"
    r"|\d{5,}[\s})]*!|!\s*\)?\s*!|\\binom\s*\{\s*\d{5,}"
)
OPERATORS = re.compile(  # an answer with one of these restates the problem instead of solving it
    r"\\(?:int|iint|sum|prod|lim|max|min|sup|inf|det|gcd|lcm)(?![A-Za-z])"
)
BASE = re.compile(r"(\d+)\s*_\s*\{?\s*(\d+)\s*\}?\Z")
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
DEGREES = re.compile(r"\{?(\d+(?:\.\d+)?)\}?\s*\\degree")  # math-verify reads 15^\circ as 15
UNIT = re.compile(r"\\text\s*\{(?![^{}]*\b(?:or|and|not)\b)[^{}\d]*\}(?:\s*\^\s*(?:\{-?\d\}|\d))?\s*\Z")


def compare_expressions(answer: str, gold: str) -> ExpressionReason:
    """Compare two tidied expressions. On a hostile answer it may not end, or may exhaust the memory."""
    if bool(RELATION.search(answer)) != bool(RELATION.search(gold)):
        return "wrong form"
    if OPERATORS.search(answer) and not OPERATORS.search(gold):
        return "wrong form"
    if (gold_base := BASE.match(gold)) and (answer_base := BASE.match(answer) or re.match(r"(\d+)()\Z", answer)):
        return "correct" if gold_base[1] == answer_base[1] and answer_base[2] in ("", gold_base[2]) else "wrong"
    if TOO_LARGE.search(answer) or bracket_depth(answer) > MAX_DEPTH:
        return "too large"
    from math_verify import verify
    from math_verify.grader import should_treat_as_complex

    answer, gold = without_separators(UNIT.sub("", answer)), without_separators(UNIT.sub("", gold))
    real = not (should_treat_as_complex(answer) or should_treat_as_complex(gold))  # to sympy a real x differs from a complex x
    gold_expression, answer_expression = read_latex(gold, real), read_latex(answer, real)
    if answer_expression is None:
        return "unparsable"
    if gold_expression is None:
        return "wrong"
    equal = equal_in_value(gold_expression, answer_expression)
    if equal is None:
        equal = bool(verify([gold_expression], [answer_expression], timeout_seconds=None))
    return "correct" if equal else "wrong"


def without_separators(text: str) -> str:
    """Return a literal number without its thousands separators, any other text unchanged."""
    return re.sub(r"[, ]|\{,\}", "", text) if re.fullmatch(r"-?\d[\d,{} ]*", text) and read_number(text) else text


def read_latex(text: str, real: bool) -> Any:
    """Return the text as latex2sympy parses it; None where it cannot.

    math_verify.parse is not used: it reads R as r (so that R-r is 0) and the g of m g as grams, and it falls back to a
    grammar that evaluates Python.
    """
    import sympy
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    if TRIGONOMETRY.search(text):
        text = DEGREES.sub(r"{\\frac{\1\\pi}{180}}", text)
    normalization = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    text = normalize_latex(text.replace(r"\degree", ""), normalization)
    try:
        expression = latex2sympy(
            text, is_real=real, normalization_config=None, conversion_config=ConversionConfig(lowercase_symbols=False)
        )
        if isinstance(expression, sympy.Expr):  # i is the imaginary unit: the benchmarks use it for nothing else
            imaginary = [symbol for symbol in expression.free_symbols if symbol.name == "i"]
            expression = expression.subs(dict.fromkeys(imaginary, sympy.I))
    except Exception:  # antlr and sympy raise many types of exceptions
        return None
    return expression


def equal_in_value(first: Any, second: Any) -> bool | None:
    """Return whether two sympy objects have the same value; None where one is not a formula or has no finite value."""
    import sympy

    if not (isinstance(first, sympy.Expr) and isinstance(second, sympy.Expr)):
        return None
    if first.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan) or second.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan):
        return None
    variables = sorted(first.free_symbols | second.free_symbols, key=str)
    if not variables:
        return equal_numbers(first, second)
    compared = 0
    for point in POINTS:
        values = {symbol: sympy.Float(point[index % 3], PRECISION) + index for index, symbol in enumerate(variables)}
        a, b = first.evalf(PRECISION, subs=values), second.evalf(PRECISION, subs=values)
        if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
            continue
        if abs(a - b) > (RELATIVE_TOLERANCE if has_decimal(first, second) else 1e-15) * abs(a):
            return False
        compared += 1
    return True if compared == len(POINTS) and first.free_symbols == second.free_symbols else None


def has_decimal(*expressions: Any) -> bool:
    """Return whether one of the expressions contains a decimal, which sympy reads as a Float."""
    import sympy

    return any(expression.has(sympy.Float) for expression in expressions)


def equal_numbers(first: Any, second: Any) -> bool | None:
    """Return whether two numbers are equal; None where one is not finite.

    Exact numbers are equal if they agree to 100 digits; a decimal is compared to six decimals and six significant digits.
    """
    import sympy

    if has_decimal(first, second):
        a, b = sympy.N(first, PRECISION), sympy.N(second, PRECISION)
        if not (a.is_finite and b.is_finite):
            return None
        distance = abs(a - b)
        return bool(distance <= 5e-7 and distance <= RELATIVE_TOLERANCE * abs(a)) or bool(distance <= 1e-9 * abs(a))
    difference = (first - second).doit()
    if difference.is_Rational:
        return bool(difference == 0)
    distance, size = abs(difference.evalf(PRECISION, maxn=400)), abs(first.evalf(PRECISION))
    if not (distance.is_number and size.is_number and size.is_finite):
        return None
    return bool(distance <= sympy.Float("1e-100") * max(size, 1))
