"""Compare answers for `rlvr audit` by a second method: sympy's own LaTeX grammar and values at fixed points.

It shares no code with `answers.py` and `expressions.py`, so that their mistakes show as disagreements. It compares values only
and does not apply the rules on the form of an answer.
"""

import re
from typing import Any

POINTS = ("0.7391", "-1.6183", "2.2360", "0.5772", "-0.9159", "1.2020")
E_NOTATION = re.compile(r"(\d)[eE]([+-]?\d+)")
REPLACEMENTS = {
    r"\pi": "(3.14159265358979323846)",
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\left": "",
    r"\right": "",
    "$": "",
    r"\,": "",
}


def opinion(answer: str, gold: str) -> str | None:
    """Return `same` or `different`, None where a side cannot be parsed. May hang on a hostile answer: use the sandbox."""
    answer_expression, gold_expression = read_expression(answer), read_expression(gold)
    if answer_expression is None or gold_expression is None:
        return None
    return "same" if equal_in_value(answer_expression, gold_expression) else "different"


def read_expression(text: str) -> Any:
    """Return the text as a sympy expression; None where the grammar does not cover it."""
    from sympy import Expr
    from sympy.parsing.latex import parse_latex

    text = E_NOTATION.sub(r"\1 \\cdot 10^{\2}", text)
    for command, plain in REPLACEMENTS.items():
        text = text.replace(command, plain)
    try:
        expression = parse_latex(text.strip(), backend="lark")
    except Exception:  # lark and its transformer raise many types of exceptions
        return None
    return expression if isinstance(expression, Expr) else None


def equal_in_value(first: Any, second: Any) -> bool:
    """Return whether two expressions agree at two points to nine digits."""
    from sympy import Float

    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    for points in (POINTS, POINTS[1:] + POINTS[:1]):
        values = {symbol: Float(point) for symbol, point in zip(symbols, points, strict=False)}
        difference, size = (first - second).evalf(20, subs=values), abs(second.evalf(20, subs=values))
        if not (difference.is_number and abs(difference) <= 1e-9 * max(size, 1e-9)):
            return False
    return True
