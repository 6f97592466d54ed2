"""Two single expressions: read by latex2sympy, compared by value where they have one, by math-verify where they have not.

A formula's value at three points, of both signs, decides between formulas in the same variables (Schwartz 1980, Zippel 1979):
in milliseconds, where simplifying may miss an identity or never end. Exact numbers must be equal exactly; where a decimal is
involved, math-verify's six decimals and six significant digits.
"""

import re
from typing import Any, Literal

from rlvr_sweeps.grading.numbers import number
from rlvr_sweeps.grading.structure import RELATION, depth

Verdict = Literal["correct", "wrong", "wrong form", "unparsable", "too large"]
CLOSE = 1e-6  # relative; math-verify rounds to six decimals, where 1/2004! and 1/2006! are both 0
POINTS = (("0.3719", "-1.2317", "2.7131"), ("-0.6173", "1.4231", "0.8377"), ("1.9273", "0.5471", "-2.3911"))
DIGITS = 30  # to which values are computed
DEEPEST = 30  # brackets within brackets
TOO_LARGE = re.compile(  # what takes longer than any answer deserves: towers of powers, huge powers, factorials, binomials
    r"\^[\s{(]*\d+\s*\^|\d\s*\^[\s{(]*-?\d{5,}|[)}\]]\s*\^[\s{(]*-?\d{3,}"
    r"|\d{5,}[\s})]*!|!\s*\)?\s*!|\\binom\s*\{\s*\d{5,}"
)
TO_BE_WORKED_OUT = re.compile(r"\\(?:int|iint|sum|prod|lim|max|min|sup|inf|det|gcd|lcm)(?![A-Za-z])")
BASE = re.compile(r"(\d+)\s*_\s*\{?\s*(\d+)\s*\}?\Z")
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
DEGREES = re.compile(r"\{?(\d+(?:\.\d+)?)\}?\s*\\degree")  # math-verify reads 15^\circ as 15
UNIT = re.compile(r"\\text\s*\{(?![^{}]*\b(?:or|and|not)\b)[^{}\d]*\}(?:\s*\^\s*(?:\{-?\d\}|\d))?\s*\Z")


def same_expression(answer: str, gold: str) -> Verdict:
    """One tidied expression against another. It may take long, or more memory than there is, on a hostile answer."""
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

    answer, gold = plain_digits(UNIT.sub("", answer)), plain_digits(UNIT.sub("", gold))
    real = not (should_treat_as_complex(answer) or should_treat_as_complex(gold))  # a real x is not a complex x to sympy
    expected, given = reading(gold, real), reading(answer, real)
    if given is None:
        return "unparsable"
    if expected is None:
        return "wrong"
    equal = by_value(expected, given)
    if equal is None:
        equal = bool(verify([expected], [given], timeout_seconds=None))
    return "correct" if equal else "wrong"


def plain_digits(text: str) -> str:
    """A literal number without its thousands separators; other texts as they are."""
    return re.sub(r"[, ]|\{,\}", "", text) if re.fullmatch(r"-?\d[\d,{} ]*", text) and number(text) else text


def reading(text: str, real: bool) -> Any:
    """latex2sympy's reading; None where it has none.

    By itself rather than by math_verify.parse, which takes R for r (so that R-r is 0), the g of m g for grams, and falls back
    to a grammar that evaluates Python.
    """
    import sympy
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    if TRIGONOMETRY.search(text):
        text = DEGREES.sub(r"{\\frac{\1\\pi}{180}}", text)
    spelled = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    text = normalize_latex(text.replace(r"\degree", ""), spelled)
    try:
        read = latex2sympy(
            text, is_real=real, normalization_config=None, conversion_config=ConversionConfig(lowercase_symbols=False)
        )
        if isinstance(read, sympy.Expr):  # i is the imaginary unit: nowhere in the benchmarks is it anything else
            units = [symbol for symbol in read.free_symbols if symbol.name == "i"]
            read = read.subs(dict.fromkeys(units, sympy.I))
    except Exception:  # antlr and sympy raise whatever they like
        return None
    return read


def by_value(one: Any, other: Any) -> bool | None:
    """Whether two readings have the same value; None where they are no formulas, or have none."""
    import sympy

    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)):
        return None
    if one.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan) or other.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan):
        return None
    variables = sorted(one.free_symbols | other.free_symbols, key=str)
    if not variables:
        return numbers_equal(one, other)
    seen = 0
    for point in POINTS:
        values = {symbol: sympy.Float(point[place % 3], DIGITS) + place for place, symbol in enumerate(variables)}
        a, b = one.evalf(DIGITS, subs=values), other.evalf(DIGITS, subs=values)
        if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
            continue
        if abs(a - b) > (CLOSE if inexact(one, other) else 1e-15) * abs(a):
            return False
        seen += 1
    return True if seen == len(POINTS) and one.free_symbols == other.free_symbols else None


def inexact(*readings: Any) -> bool:
    import sympy

    return any(read.has(sympy.Float) for read in readings)


def numbers_equal(one: Any, other: Any) -> bool | None:
    """Exact numbers exactly, as far as a hundred digits beyond their size show; a decimal to six decimals and six digits."""
    import sympy

    if inexact(one, other):
        a, b = sympy.N(one, DIGITS), sympy.N(other, DIGITS)
        if not (a.is_finite and b.is_finite):
            return None
        apart = abs(a - b)
        return bool(apart <= 5e-7 and apart <= CLOSE * abs(a)) or bool(apart <= 1e-9 * abs(a))
    difference = (one - other).doit()
    if difference.is_Rational:
        return bool(difference == 0)
    apart, size = abs(difference.evalf(DIGITS, maxn=400)), abs(one.evalf(DIGITS))
    if not (apart.is_number and size.is_number and size.is_finite):
        return None
    return bool(apart <= sympy.Float("1e-100") * max(size, 1))
