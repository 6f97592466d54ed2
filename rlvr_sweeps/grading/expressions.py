"""Compare two single expressions: parsed by latex2sympy, compared by value where they have one, else by math-verify.

Two formulas in the same variables are equal if their values agree at fixed points (Schwartz 1980, Zippel 1979): small and large
arguments of both signs, points beside integers, and integers where a formula is about integers. This takes milliseconds,
whereas simplification may miss an identity or never end. Exact numbers must be exactly equal; where one side is a decimal, six
decimals and six significant digits must agree; in a formula a decimal loosens only itself, to half a unit of its last digit.
"""

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Literal

from rlvr_sweeps.grading.latex import closes_at
from rlvr_sweeps.grading.numbers import ENOUGH_DIGITS, NO_UNIT, read_number
from rlvr_sweeps.grading.structure import RELATION, bracket_balance, bracket_depth
from rlvr_sweeps.grading.symbols import Names, with_free_index, with_letters
from rlvr_sweeps.grading.units import Unit, read_unit

ExpressionReason = Literal["correct", "wrong", "wrong form", "unparsable", "too large"]
RELATIVE_TOLERANCE = 1e-6  # beside math-verify's six decimals, under which 1/2004! and 1/2006! are both 0
EXACT = 1e-15  # relative difference of equal values, computed to PRECISION digits
ZERO = 1e-27  # absolute difference: zero may be computed as a number of this size
# Values of the first, second and third variable; the fourth has the first's value plus 3, and so on.
REAL_POINTS = (
    ("0.3719", "-1.2317", "2.7131"), ("-0.6173", "1.4231", "0.8377"), ("1.9273", "0.5471", "-2.3911"),
    ("0.2713", "3.1173", "1.7719"), ("5.3117", "0.7193", "13.7131"), ("101.3719", "57.1393", "23.9117"),
    ("17.2913", "-23.7171", "101.3719"), ("-31.7713", "12.2391", "-7.5179"), ("2.9991", "-4.0007", "7.0003"),
    ("-5.0009", "2.9993", "-11.9997"), ("1234.5671", "-4321.7651", "777.1234"), ("-98765.4321", "54321.9876", "-6789.1234"),
)  # fmt: skip
INTEGER_POINTS = (
    ("1", "1", "2"), ("2", "3", "4"), ("3", "2", "7"), ("4", "9", "5"), ("6", "4", "9"), ("7", "12", "8"), ("11", "5", "10"),
    ("12", "7", "3"), ("20", "15", "13"), ("30", "17", "24"), ("100", "60", "71"), ("144", "120", "75"),
)  # fmt: skip
INTEGER_NAMES = ("k", "l", "m", "n", "p", "q", "r", "N", "M", "K")
ENOUGH_POINTS = 3
STEPS = 53  # points for a formula with floor or ceiling
PRECISION = 30  # digits to which values are computed
MAX_DEPTH = 30  # nested brackets
TOO_LARGE = re.compile(  # expressions too expensive to evaluate: towers of powers, huge powers, factorials, binomials
    r"\^[\s{(]*\d+\s*\^[\s{(]*\d|\d\s*\^[\s{(]*-?\d{5,}|[)}\]]\s*\^[\s{(]*-?\d{4,}"
    r"|\d{5,}[\s})]*!|!\s*\)\s*!|\d\s*!\s*!|\\binom\s*\{\s*\d{5,}"
)
OPERATORS = re.compile(  # an answer with one of these restates the problem instead of solving it
    r"\\(?:int|iint|sum|prod|lim|max|min|sup|inf|det|gcd|lcm)(?![A-Za-z])|\\frac\s*\{\s*d\s*\}"
)
BASE = re.compile(r"\(?(\d+)\)?\s*(?:_\s*\{?|\\text\s*\{\s*(?:in )?base\s*\}?)\s*(\d+)\s*\}?\Z")
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
DEGREES = re.compile(r"\{?(\d+(?:\.\d+)?)\}?\s*\\degree")  # math-verify reads 15^\circ as 15
COMPOUND = re.compile(r"\d\s*\\text\s*\{[^{}]*\}\s*\d|\\degree\s*\d|\d\s*:\s*\d\d(?!\d)")  # 3 ft 5 in, 30°45', 2:30
UNIT = re.compile(r"\\text\s*\{(?P<words>(?![^{}]*\b(?:or|and|not)\b)[^{}\d]*)\}(?:\s*\^\s*(?:\{-?\d\}|\d))?\s*\Z")
EQUATION = re.compile(r"(?<![<>\\])(=|<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z]))")
TURNED = {"=": "=", "<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
DECIMAL = re.compile(r"\d*\.\d+")
DOUBLE_FACTORIAL = re.compile(r"(?P<plain>[A-Za-z])?\s*!\s*!")


def compare_expressions(answer: str, gold: str) -> ExpressionReason:
    """Compare two tidied expressions. On a hostile answer it may not end, or may exhaust the memory."""
    if bool(RELATION.search(answer)) != bool(RELATION.search(gold)) or answer.count("=") > max(1, gold.count("=")):
        return "wrong form"
    if OPERATORS.search(answer) and not OPERATORS.search(gold):
        return "wrong form"
    if (gold_base := BASE.match(gold)) and (answer_base := BASE.match(answer) or re.match(r"(\d+)()\Z", answer)):
        return "correct" if gold_base[1] == answer_base[1] and answer_base[2] in ("", gold_base[2]) else "wrong"
    if COMPOUND.search(answer) or COMPOUND.search(gold):  # 3 ft 5 in is no product
        return "correct" if "".join(answer.split()) == "".join(gold.split()) else "wrong"
    if answer.count(":") > 1 or gold.count(":") > 1:
        return "correct" if equal_ratios(answer, gold) else "wrong"
    if answer.count(r"\begin") > gold.count(r"\begin") > 0:  # a product of matrices for its value
        return "wrong form"
    if TOO_LARGE.search(answer) or bracket_depth(answer) > MAX_DEPTH:
        return "too large"
    from math_verify import verify

    units = unit_words(answer), unit_words(gold)
    if units[0] and units[1] and units[0] != units[1]:
        return "wrong"
    answer, gold = (without_separators(without_unit_words(text)) for text in (answer, gold))
    names = Names.of(answer, gold)
    answer, gold = (with_free_index(with_letters(text, names), names) for text in (answer, gold))
    if (sides := relation_sides(answer)) and (gold_sides := relation_sides(gold)):
        return compare_relations(sides, gold_sides, names)
    real = is_real(answer, gold)
    gold_expression, answer_expression = read_latex(gold, real), read_latex(answer, real)
    if answer_expression is None:
        return "unparsable"
    if gold_expression is None:
        return "wrong"
    equal = equal_in_value(gold_expression, answer_expression, half_units(answer, gold), names.positive)
    if equal is None:
        equal = bool(verify([gold_expression], [answer_expression], timeout_seconds=None))
    return "correct" if equal else "wrong"


def without_unit_words(text: str) -> str:
    """Return the text without the unit in \\text{…} at its end; words that change a value are no unit."""
    match = UNIT.search(text)
    return text if match is None or NO_UNIT.search(match["words"]) else text[: match.start()]


def unit_words(text: str) -> Unit | None:
    """Return the unit in \\text{…} at the end of a text; None where there is none, or an unknown one."""
    match = UNIT.search(text)
    return None if match is None or NO_UNIT.search(match["words"]) else read_unit(match[0])


def equal_ratios(first: str, second: str) -> bool:
    """Return whether two ratios of several literal numbers, such as 1:2:3 and 2:4:6, are equal."""
    sides = [[read_number(part.strip()) for part in text.split(":")] for text in (first, second)]
    if len(sides[0]) != len(sides[1]) or not all(number and number.value for side in sides for number in side):
        return False
    values = [[number.value for number in side if number] for side in sides]
    return all(a * values[1][0] == b * values[0][0] for a, b in zip(*values, strict=True))


def relation_sides(text: str) -> list[str]:
    """Return [left side, sign, right side] of a text with one =, <, > or the like outside brackets; else an empty list."""
    signs = [match for match in EQUATION.finditer(text) if bracket_balance(text[: match.start()]) == 0]
    return [text[: signs[0].start()], signs[0][0], text[signs[0].end() :]] if len(signs) == 1 else []


def is_real(*texts: str) -> bool:
    """Return whether the variables of the texts are real; to sympy a real x differs from a complex x."""
    from math_verify.grader import should_treat_as_complex

    return not any(should_treat_as_complex(text) for text in texts)


def compare_relations(answer: list[str], gold: list[str], names: Names) -> ExpressionReason:
    """Compare two relations, each given as [left side, sign, right side].

    They are equal if the differences of their sides are a constant multiple of each other, as formulas or as their numerators,
    with the sense of an inequality. A relation without variables, such as 0=1, has no solutions to compare: its sides must be
    equal one by one. Solution sets are not compared, since all sets without an element are equal.
    """
    real = is_real(*answer, *gold)
    left, sign, right = answer[0], answer[1], answer[2]
    expressions = [read_latex(text, real) for text in (left, right, gold[0], gold[2])]
    if expressions[0] is None or expressions[1] is None:
        return "unparsable"
    import sympy

    if not all(isinstance(expression, sympy.Expr) for expression in expressions):
        return "wrong"
    units = half_units(left, right, gold[0], gold[2])
    first, second, third, fourth = expressions
    difference, gold_difference = first - second, third - fourth
    if not difference.free_symbols or not gold_difference.free_symbols:
        pairs = [((first, third), (second, fourth)), ((first, fourth), (second, third))]
        signs = [sign == gold[1], sign == TURNED[gold[1]]]
        for pair, same in zip(pairs, signs, strict=True):
            if same and all(equal_in_value(one, other, units, names.positive) for one, other in pair):
                return "correct"
        return "wrong"
    for one, other in ((difference, gold_difference), tuple(numerator(each) for each in (difference, gold_difference))):
        factor = constant_ratio(one, other, units, names.positive)
        if factor is not None:
            return "correct" if sign == (gold[1] if factor > 0 else TURNED[gold[1]]) else "wrong"
        if gold[1] != "=":  # a numerator may have another sign than the difference
            break
    return "wrong"


def equal_constants(first: str, second: str) -> bool:
    """Return whether two tidied expressions without variables have the same value. May not return on a hostile expression."""
    values = [constant(text) for text in (first, second)]
    return all(value is not None for value in values) and bool(equal_in_value(values[0], values[1], {}, set()))


def constant_value(text: str) -> Fraction | None:
    """Return the value of a tidied expression without variables, to PRECISION digits; None where it has no real one.

    May not return on a hostile expression.
    """
    if (number := read_number(text)) is not None:
        return number.value
    value = constant(text)
    number_value = None if value is None else value.evalf(PRECISION)
    return Fraction(str(number_value)) if number_value is not None and number_value.is_real and number_value.is_finite else None


def constant(text: str) -> Any:
    """Return a tidied expression without variables as sympy reads it; None where it is another or too large."""
    if TOO_LARGE.search(text) or bracket_depth(text) > MAX_DEPTH or OPERATORS.search(text):
        return None
    import sympy

    value = read_latex(without_separators(text), is_real(text))
    return value if isinstance(value, sympy.Expr) and not value.free_symbols else None


def is_rounded(value: Fraction, decimals: int, exact: str) -> bool:
    """Return whether an expression without variables, rounded or cut to so many decimals, is `value`."""
    import sympy

    expression = constant(exact)
    if expression is None:
        return False
    number = expression.evalf(PRECISION)
    stated = sympy.Rational(value.numerator, value.denominator)
    return bool(number.is_real and abs(number - stated) < sympy.Rational(1, 10**decimals))


def numerator(expression: Any) -> Any:
    """Return the numerator of an expression as one fraction."""
    import sympy

    return sympy.together(expression).as_numer_denom()[0]


def constant_ratio(first: Any, second: Any, units: dict[Any, float], positive: set[str]) -> float | None:
    """Return the constant c with first = c · second; None where the ratio is not constant, zero or not finite."""
    if first.free_symbols != second.free_symbols:
        return None
    start = None
    for values in points(first, second, positive):
        a, b = value_at(first, values), value_at(second, values)
        if a is None or b is None or b == 0 or not (a.is_real and b.is_real):
            continue
        start = a / b if start is None else start
        if start == 0:
            return None
        equal = equal_in_value(first, start * second, units, positive)
        return float(start) if equal else None
    return None


def without_separators(text: str) -> str:
    """Return a literal number without its thousands separators, any other text unchanged."""
    return re.sub(r"[, ]|\{,\}", "", text) if re.fullmatch(r"-?\d[\d,{} ]*", text) and read_number(text) else text


def read_latex(text: str, real: bool) -> Any:
    """Return the text as latex2sympy parses it; None where it cannot.

    math_verify.parse is not used: it reads R as r (so that R-r is 0) and the g of m g as grams, and it falls back to a
    grammar that evaluates Python. latex2sympy has no double factorial: its argument is read alone.
    """
    import sympy
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from sympy.core.function import AppliedUndef

    if match := DOUBLE_FACTORIAL.search(text):
        start = match.start() if match["plain"] else opening(text, match.start())
        letter = next((letter for letter in "ZYXWVU" if letter not in text), None)
        if start < 0 or letter is None:
            return None
        argument = match["plain"] or text[start : match.start()]
        inner, outer = read_latex(argument, real), read_latex(f"{text[:start]} {letter} {text[match.end() :]}", real)
        if inner is None or outer is None:
            return None
        return outer.subs({symbol: sympy.factorial2(inner) for symbol in outer.free_symbols if symbol.name == letter})
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
            calls = expression.atoms(AppliedUndef)  # the value of f(t) is a variable of its own
            expression = expression.xreplace({call: sympy.Symbol(str(call), real=real or None) for call in calls})
    except Exception:  # antlr and sympy raise many types of exceptions
        return None
    return expression


def opening(text: str, end: int) -> int:
    """Return where the bracket that closes just before `end` opens; -1 where none does."""
    close = len(text[:end].rstrip()) - 1
    return next((start for start in range(end) if text[start] in "({" and closes_at(text, start) == close), -1)


def equal_in_value(first: Any, second: Any, units: dict[Any, float], positive: set[str]) -> bool | None:
    """Return whether two sympy objects have the same value; None where one is not a formula or has no finite value.

    `units`: what a decimal may be off by, by its value. `positive`: names of variables that stand for positive quantities.
    """
    import sympy

    if not (isinstance(first, sympy.Expr) and isinstance(second, sympy.Expr)):
        return None
    infinite = any(expression.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan) for expression in (first, second))
    if infinite and first.free_symbols != second.free_symbols:
        return False
    if infinite and not any(expression.has(sympy.Sum, sympy.Product) for expression in (first, second)):
        return None
    if not (first.free_symbols | second.free_symbols):
        return equal_numbers(first, second)
    first, second = exact_decimals(first, units), exact_decimals(second, units)
    natural = not (first.has(sympy.I) or second.has(sympy.I))  # formulas over the real numbers, compared where they are real
    compared = 0
    smooth = is_smooth(first) and is_smooth(second)
    for values in points(first, second, positive):
        a, b = value_at(first, values), value_at(second, values)
        if a is None or b is None or (natural and not a.is_real and not b.is_real):
            continue
        allowed = (
            EXACT * abs(a)
            + ZERO
            + sum(
                abs(shifted - whole)
                for expression, whole in ((first, a), (second, b))
                for decimal in expression.atoms(sympy.Float)
                if (shifted := value_at(expression.xreplace({decimal: decimal + units.get(decimal, 0)}), values)) is not None
            )
        )
        if abs(a - b) > allowed:
            return False
        compared += 1
        if smooth and compared == ENOUGH_POINTS:
            break
    if compared < ENOUGH_POINTS or first.free_symbols != second.free_symbols:
        return None
    return units_used(first, second, units) or equal_exactly(first, second)


def is_smooth(expression: Any) -> bool:
    """Return whether a formula is of sums, products, quotients, whole powers, sine, cosine and e^x only.

    Such a formula is analytic wherever it has a value. Two of them that agree at ENOUGH_POINTS fixed points are equal, but for
    formulas made to vanish at these points; others, with roots or absolute values, may agree on one side of a point only.
    """
    import sympy

    parts = {type(part) for part in sympy.preorder_traversal(expression)}
    if any(issubclass(part, sympy.Function) and part not in (sympy.sin, sympy.cos, sympy.exp) for part in parts):
        return False
    return all(power.exp.is_Integer or power.base is sympy.E for power in expression.atoms(sympy.Pow) if power.free_symbols)


def units_used(first: Any, second: Any, units: dict[Any, Any]) -> bool:
    """Return whether a formula has a decimal that may be a rounded value."""
    import sympy

    return any(decimal in units for expression in (first, second) for decimal in expression.atoms(sympy.Float))


def equal_exactly(first: Any, second: Any) -> bool:
    """Return whether two formulas also agree to 1,000 digits at a rational point: 2^{100}-n-1 is not 2^{100}-n."""
    import sympy

    variables = sorted(first.free_symbols | second.free_symbols, key=str)
    whole = is_about_integers(first) or is_about_integers(second)
    values = {
        symbol: sympy.Integer(5 + index) if whole and symbol.name in INTEGER_NAMES else sympy.Rational(7 + 2 * index, 3 + index)
        for index, symbol in enumerate(variables)
    }
    a, b = first.xreplace(values).doit(), second.xreplace(values).doit()
    if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
        return True  # the comparison at the points counts
    return equal_numbers(a, b) is not False


def points(first: Any, second: Any, positive: set[str]) -> Iterator[dict[Any, Any]]:
    """Yield the points at which two formulas are compared: values by variable."""
    import sympy

    variables = sorted(first.free_symbols | second.free_symbols, key=str)
    whole = is_about_integers(first) or is_about_integers(second)

    def point(numbers: Sequence[Any]) -> dict[Any, Any]:
        values = {}
        for index, symbol in enumerate(variables):
            number = numbers[index] + 3 * (index // 3)
            values[symbol] = abs(number) if symbol.name in positive else number
        return values

    is_integer = [whole and symbol.name in INTEGER_NAMES for symbol in variables]
    for number_of_point, (reals, integers) in enumerate(zip(REAL_POINTS, INTEGER_POINTS, strict=True)):
        yield point(
            [
                sympy.Integer(integers[index % 3]) if always else sympy.Float(reals[index % 3], PRECISION)
                for index, always in enumerate(is_integer)
            ]
        )
        if whole and number_of_point % 2 and not all(is_integer):
            yield point([sympy.Integer(integers[index % 3]) for index in range(len(variables))])
    if has_steps(first) or has_steps(second):
        for step in range(STEPS):  # consecutive integers, and every fractional part to 1/STEPS, of both signs
            yield point(
                [
                    sympy.Integer(step + index) if always
                    else sympy.Rational((step - STEPS // 2) * (7 + index), STEPS)
                    for index, always in enumerate(is_integer)
                ]
            )  # fmt: skip


def has_steps(expression: Any) -> bool:
    """Return whether a formula has floor or ceiling, which differ from another's on short intervals only."""
    import sympy

    return bool(expression.has(sympy.floor, sympy.ceiling))


def is_about_integers(expression: Any) -> bool:
    """Return whether a formula has operations whose variables are usually integers: floor, factorial, a sum, (-1)^n."""
    import sympy

    operations = (
        sympy.floor, sympy.ceiling, sympy.factorial, sympy.factorial2, sympy.binomial, sympy.Sum, sympy.Product, sympy.Mod,
    )  # fmt: skip
    return expression.has(*operations) or any(
        power.base.is_number and power.base.is_negative and power.exp.free_symbols for power in expression.atoms(sympy.Pow)
    )


def value_at(expression: Any, values: dict[Any, Any]) -> Any:
    """Return the finite value of an expression at a point; None where it has none."""
    import sympy

    if expression.has(sympy.Sum, sympy.Product, sympy.factorial, sympy.factorial2, sympy.binomial, sympy.floor, sympy.ceiling):
        value = expression.xreplace(values).doit().evalf(PRECISION)
    else:
        value = expression.evalf(PRECISION, subs=values)
    return value if value.is_number and value.is_finite else None


def half_units(*texts: str) -> dict[Any, Any]:
    """Return half a unit of the last digit of each decimal in the texts that has enough digits to be a rounded value."""
    import sympy

    units = {}
    for decimal in DECIMAL.findall(" ".join(texts)):
        if len(decimal.replace(".", "").lstrip("0")) >= ENOUGH_DIGITS:
            units[sympy.Float(decimal)] = sympy.Rational(1, 2 * 10 ** len(decimal.partition(".")[2]))
    return units


def exact_decimals(expression: Any, units: dict[Any, Any]) -> Any:
    """Return the expression with every decimal that is not a rounded value as a fraction: 1.5 as 3/2."""
    import sympy

    exact = {decimal: sympy.Rational(str(decimal)) for decimal in expression.atoms(sympy.Float) if decimal not in units}
    return expression.xreplace(exact)


def has_decimal(*expressions: Any) -> bool:
    """Return whether one of the expressions contains a decimal, which sympy reads as a Float."""
    import sympy

    return any(expression.has(sympy.Float) for expression in expressions)


def equal_numbers(first: Any, second: Any) -> bool | None:
    """Return whether two numbers are equal; None where one is not finite.

    Exact numbers are equal if they agree to 1,000 digits; a decimal is compared to six decimals and six significant digits.
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
    distance, size = abs(difference.evalf(PRECISION, maxn=1200)), abs(first.evalf(PRECISION))
    if not (distance.is_number and size.is_number and size.is_finite):
        return None
    return bool(distance <= sympy.Float("1e-1000") * size)
