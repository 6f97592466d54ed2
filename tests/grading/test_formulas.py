r"""Test properties of the comparison of formulas, on random formulas.

Two spellings of a formula agree; a formula that was changed in one place disagrees, unless its values are the same. The values
are computed here with mpmath, independently of the grader.
"""

from dataclasses import dataclass

import mpmath
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlvr_sweeps.grading.grader import compare_all

POINTS = [  # values of x, y and n: both signs, small and large, beside integers
    (mpmath.mpf("0.37"), mpmath.mpf("1.9"), 2),
    (mpmath.mpf("-1.23"), mpmath.mpf("0.71"), 3),
    (mpmath.mpf("2.9991"), mpmath.mpf("-4.0007"), 5),
    (mpmath.mpf("17.31"), mpmath.mpf("-0.53"), 8),
    (mpmath.mpf("-98.7"), mpmath.mpf("54.3"), 4),
    (mpmath.mpf("0.5"), mpmath.mpf("-7.25"), 7),
]
ROUNDING = mpmath.mpf(10) ** -9  # floor and ceiling of a value this close to an integer are the integer
FUNCTIONS = {
    "sin": mpmath.sin,
    "cos": mpmath.cos,
    "floor": lambda value: mpmath.floor(value + ROUNDING),
    "ceil": lambda value: mpmath.ceil(value - ROUNDING),
    "abs": abs,
}
OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}


@dataclass(frozen=True)
class Node:
    """A formula: an operation or function with its arguments, or a number, a name or \\pi without arguments."""

    name: str
    arguments: tuple["Node", ...] = ()

    def value(self, point):
        """Return the value at a point, by mpmath."""
        values = [argument.value(point) for argument in self.arguments]
        if not values:
            return {"x": point[0], "y": point[1], "n": point[2], "pi": mpmath.pi}.get(self.name) or mpmath.mpf(self.name)
        if self.name == "power":
            return values[0] ** int(self.arguments[1].name)
        if self.name == "sqrt":
            return mpmath.sqrt(values[0])
        return FUNCTIONS[self.name](values[0]) if self.name in FUNCTIONS else OPERATIONS[self.name](*values)


def leaf():
    """Return a strategy for numbers and names."""
    return st.sampled_from(["x", "y", "n", "pi", *map(str, range(1, 13))]).map(Node)


def formula():
    """Return a strategy for formulas of at most eight leaves."""

    def extend(inner):
        pairs = st.tuples(inner, inner)
        return st.one_of(
            st.builds(Node, st.sampled_from("+-*/"), pairs),
            st.builds(lambda base, exponent: Node("power", (base, Node(str(exponent)))), inner, st.integers(2, 4)),
            st.builds(lambda name, argument: Node(name, (argument,)), st.sampled_from([*FUNCTIONS]), inner),
            st.builds(lambda number: Node("sqrt", (Node(str(number)),)), st.integers(2, 12)),
        )  # fmt: skip

    return st.recursive(leaf(), extend, max_leaves=8)


def latex(node, style):
    r"""Return the LaTeX of a formula in a style: 0 plain, 1 turned around, 2 with \dfrac and \left, 3 in plain text."""
    parts = [latex(argument, style) for argument in node.arguments]
    opening, closing = (r"\left(", r"\right)") if style == 2 else ("(", ")")
    grouped = [
        part if not argument.arguments else opening + part + closing
        for part, argument in zip(parts, node.arguments, strict=True)
    ]
    if not parts:
        return (" pi " if style == 3 else r"\pi ") if node.name == "pi" else node.name
    match node.name:
        case "+":
            return f"{parts[1]}+{parts[0]}" if style == 1 else f"{parts[0]} + {parts[1]}"
        case "-":
            return f"-{grouped[1]}+{parts[0]}" if style == 1 else f"{parts[0]}-{grouped[1]}"
        case "*":
            sign = {0: r"\cdot ", 1: r"\times ", 2: r" \cdot ", 3: "*"}[style]
            return sign.join(reversed(grouped) if style == 1 else grouped)
        case "/":
            return (
                f"{grouped[0]}/{grouped[1]}"
                if style in (1, 3)
                else (r"\dfrac" if style == 2 else r"\frac") + f"{{{parts[0]}}}{{{parts[1]}}}"
            )
        case "power":
            return f"{grouped[0]}^{parts[1]}" if style == 3 else f"{grouped[0]}^{{{parts[1]}}}"
        case "sqrt":
            return f"sqrt({parts[0]})" if style == 3 else rf"\sqrt{{{parts[0]}}}"
        case "floor":
            return rf"\lfloor {parts[0]} \rfloor"
        case "ceil":
            return rf"\lceil {parts[0]} \rceil"
        case "abs":
            return rf"\left|{parts[0]}\right|" if style == 2 else rf"\lvert {parts[0]} \rvert"
        case function:
            return f"{function}({parts[0]})" if style == 3 else rf"\{function}\left({parts[0]}\right)"


def changed(node, draw):
    """Return the formula with one number, name or operation changed."""
    if node.arguments and (node.name == "sqrt" or draw(st.booleans())):
        position = draw(st.integers(0, len(node.arguments) - 1))
        arguments = list(node.arguments)
        arguments[position] = changed(arguments[position], draw)
        return Node(node.name, tuple(arguments))
    if not node.arguments:
        return Node(str(int(node.name) + 1) if node.name.isdigit() else {"x": "y", "y": "x", "n": "x", "pi": "3"}[node.name])
    others = {
        "+": "-",
        "-": "+",
        "*": "/",
        "/": "*",
        "sin": "cos",
        "cos": "sin",
        "floor": "ceil",
        "ceil": "floor",
        "abs": "floor",
    }
    return Node(others[node.name], node.arguments) if node.name in others else Node("+", (node, Node("1")))


@st.composite
def changed_formulas(draw):
    """Draw a formula and the same changed in one place, with values that differ at two points at least."""
    original = draw(formula())
    return original, changed(original, draw)


def values(node):
    """Return the values at all points; None where one is not defined."""
    try:
        return [node.value(point) for point in POINTS]
    except (ZeroDivisionError, OverflowError):
        return None


def has_values(node):
    """Return whether the values at all points are defined and of ordinary size, and the formula has a name or a sum."""
    computed = values(node)
    return computed is not None and all(abs(value) < 1e12 for value in computed)


def has_variable(node):
    """Return whether a formula has a variable; one without may be refused because it must be computed."""
    return node.name in ("x", "y", "n") or any(map(has_variable, node.arguments))


FIXED_EXAMPLES = 10  # a change must not fail for an example that it did not meet before


def repeat(examples, strategy, check):
    """Check so many examples of a strategy: always the same few, or as many new ones as an exhaustive test asks for."""
    health = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    chosen = settings(
        max_examples=examples, deadline=None, suppress_health_check=health, derandomize=examples == FIXED_EXAMPLES
    )
    chosen(given(strategy)(check))()


NUMBERS_OF_EXAMPLES = [FIXED_EXAMPLES, pytest.param(300, marks=pytest.mark.exhaustive)]


@pytest.mark.slow
@pytest.mark.parametrize("examples", NUMBERS_OF_EXAMPLES)
def test_spellings_of_a_formula_agree(examples):
    def check(formulas):
        pairs = [(latex(each, style), latex(each, 0)) for each in formulas for style in (1, 2, 3)]
        assert not {pair: reason for pair, reason in compare_all(dict.fromkeys(pairs)).items() if reason != "correct"}

    repeat(examples, st.lists(formula().filter(has_variable).filter(has_values), min_size=8, max_size=8), check)


@pytest.mark.slow
@pytest.mark.parametrize("examples", NUMBERS_OF_EXAMPLES)
def test_a_formula_changed_in_one_place_disagrees(examples):
    def check(formulas):
        pairs = []
        for original, other in formulas:
            if has_values(original) and has_values(other):
                together = zip(values(original), values(other), strict=True)
                if sum(abs(a - b) > 1e-3 * (1 + abs(a)) for a, b in together) >= 2:
                    pairs.append((latex(other, 0), latex(original, 0)))
        assert "correct" not in compare_all(dict.fromkeys(pairs)).values()

    repeat(examples, st.lists(changed_formulas(), min_size=16, max_size=16), check)
