"""The second reader of `rlvr audit`: sympy's lark grammar and values at random points; it knows no policy."""

import re
from typing import Any

POINTS = ("0.7391", "-1.6183", "2.2360", "0.5772", "-0.9159", "1.2020")
E_NOTATION = re.compile(r"(\d)[eE]([+-]?\d+)")
CONSTANTS = {
    r"\pi": "(3.14159265358979323846)",
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\left": "",
    r"\right": "",
    "$": "",
    r"\,": "",
}


def opinion(answer: str, gold: str) -> str | None:
    """`same` or `different`; None where a side cannot be read. It may hang on a hostile answer: call it in the judge."""
    one, other = reading(answer), reading(gold)
    if one is None or other is None:
        return None
    return "same" if value_equal(one, other) else "different"


def reading(text: str) -> Any:
    from sympy import Expr
    from sympy.parsing.latex import parse_latex

    text = E_NOTATION.sub(r"\1 \\cdot 10^{\2}", text)
    for command, plain in CONSTANTS.items():
        text = text.replace(command, plain)
    try:
        read = parse_latex(text.strip(), backend="lark")
    except Exception:  # lark and its transformer raise whatever they like
        return None
    return read if isinstance(read, Expr) else None


def value_equal(one: Any, other: Any) -> bool:
    from sympy import Float

    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    for points in (POINTS, POINTS[1:] + POINTS[:1]):
        values = {symbol: Float(point) for symbol, point in zip(symbols, points, strict=False)}
        difference, size = (one - other).evalf(20, subs=values), abs(other.evalf(20, subs=values))
        if not (difference.is_number and abs(difference) <= 1e-9 * max(size, 1e-9)):
            return False
    return True
