"""Split a tidied LaTeX answer into its parts: the name before a value, text answers, intervals, lists, sets and tuples."""

import re

from rlvr_sweeps.grading.latex import closes_at
from rlvr_sweeps.grading.numbers import read_number

RELATION = re.compile(r"(?<!\\)[=<>]|\\(?:le|ge|ne|in|subset|subseteq|equiv|approx|sim|iff|implies|to|mid)(?![A-Za-z])")
GREEK = "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|rho|sigma|tau|phi|psi|omega|Delta|Omega|Phi|ell"
SUBSCRIPT = r"(?:_(?:\w|\{[^{}=<>]*(?:\{[^{}]*\})?\}))?'*"
ATOM = rf"(?:(?:\\(?:{GREEK})(?![A-Za-z])|[A-Za-z]){SUBSCRIPT})"
NAMES = rf"(?:\[[A-Z]{{3,6}}\]|\|\s*{ATOM}++\s*\||{ATOM}(?:\s*{ATOM})*+)"  # [ABC], |AB|, AB, x
CALL = r"\((?:[^()]|\([^()]*\))*\)"
NAMED_THING = (  # what may precede "=": the name of a quantity, not an expression to compute
    rf"(?:{ATOM}(?:\s*(?:[+-]\s*)?{ATOM})*+(?:(?:\s*\^\s*\{{-1\}})?{CALL})?"  # x, AB, m+n, f(3), f^{-1}(2), P(X=1)
    rf"|{NAMES}(?:\s*\\(?:cdot|times)\s*{NAMES})+|\\frac\s*\{{\s*{NAMES}\s*\}}\s*\{{\s*{NAMES}\s*\}}|{NAMES}\s*[/:]\s*{NAMES}"
    rf"|\\mathbb\s*\{{?\s*[A-Z]\s*\}}?\s*(?:\[[^\[\]]*\]|{CALL})|[A-Z]\s*\[[^\[\]]*\]|\\(?:Pr|det|deg|gcd|lcm)\s*{CALL}"
    rf"|\\(?:angle|triangle|measuredangle)\s*[A-Z]{{1,3}}|m\\angle\s*[A-Z]{{1,3}}|\\overline\s*\{{[A-Z]{{1,2}}\}}"
    rf"|\\(?:vec|overrightarrow|hat|bar|tilde|overline)\s*\{{\s*{ATOM}\s*\}}"  # \vec{{v}}
    rf"|\|\s*{ATOM}++\s*\||\[[A-Z]{{3,6}}\]|\(\s*{ATOM}(?:\s*,\s*{ATOM})+\s*\)"  # |z|, [ABC], (x, y)
    r"|\\text\s*\{\s*(?!(?:[^{}]*\b(?:or|and|not)\b))[A-Za-z][A-Za-z ]*\})"
)
NAME = re.compile(rf"\s*{NAMED_THING}\s*(?P<sign>=|\\approx|\\in(?![A-Za-z]))(?P<rest>.+)\Z")
TURNED_NAME = re.compile(rf"(?P<value>[^=A-Za-z]+)=\s*{ATOM}\s*\Z")  # 5=x
ALL_NAME = re.compile(NAMED_THING)
NAMED_VALUE = re.compile(rf"(?P<name>{ATOM})\s*=\s*(?P<value>[^=<>]+)")
NAMED_TUPLE = re.compile(rf"\(\s*(?P<names>{ATOM}(?:\s*,\s*{ATOM})+)\s*\)\s*=\s*\((?P<values>[^=<>]+)\)")
CHAIN_SIGN = re.compile(r"(?<![<>\\])=|\\(?:approx|simeq|doteq|equiv)(?![A-Za-z])")
ABOUT = re.compile(
    r"(?:\\text\s*\{\s*)?\(\s*(?:\\text\s*\{\s*)?(?:about|approximately|approx\.?|roughly|ca\.|\\approx)\s*\}?\s*(?P<value>-?[\d.,]+)"
    r"\s*(?:\\text\s*\{\s*)?\)\s*\}?\s*\Z"
)
VARIABLE = re.compile(r"([A-Za-z]'*|\\frac\s*\{\s*d\s*[A-Za-z]\s*\}\s*\{\s*d\s*[A-Za-z]\s*\}|\\d?dot\s*\{[A-Za-z]\})\s*=")
TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
VECTOR = re.compile(r"\\begin\s*\{(?P<kind>[pb]?matrix|array)\}(?:\s*\{[lcr|]*\})?(?P<rows>.*)\\end\s*\{(?P=kind)\}", re.DOTALL)
CASES = re.compile(r"\\begin\s*\{(?P<kind>cases|dcases)\}(?P<rows>.*)\\end\s*\{(?P=kind)\}", re.DOTALL)
CONDITION_WORDS = re.compile(r"\\text\s*\{\s*,?\s*(?:if|for|when|where)\s*\}|^\s*,?\s*(?:if|for|when|where)(?![A-Za-z])")
SEPARATOR = re.compile(r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|\s(?:and|or)\s|(?<=[)\]}\d])\s*(?:and|or)\s*(?=[(\[{\d\\-])|;")
FUNCTION_NAMES = re.compile(r"\b(?:sin|cos|tan|log|exp|sqrt|frac)\b")


def without_names(answer: str, gold: str) -> tuple[str, str]:
    """Return both values without their names; both texts unchanged for two variables (x=5, y=5) or a curve's equation."""
    value, expected = without_name(answer), without_name(gold)
    if RELATION.search(expected) or (expected != gold and RELATION.search(value)):
        return answer, gold
    variables = [VARIABLE.match(text) for text in (answer, gold)]
    if all(variables) and len({"".join(match[1].split()) for match in variables if match}) > 1:
        return answer, gold
    names = ["".join(text.split("=")[0].split()) for text in (answer, gold)]
    if value != answer and expected != gold and names[0] != names[1] and re.search("[+-]", names[0] + names[1]):
        return answer, gold  # x-y=5 and x+y=5 are two equations
    return value, expected


def without_name(text: str) -> str:
    """Return the value of `x=5` or `f(2) = 5`; any other text unchanged."""
    if match := TURNED_NAME.match(text):
        return match["value"].strip()
    match = NAME.match(text)
    if match and re.fullmatch("[A-Za-z]", text[: match.start("sign")].strip()) and text[0] in match["rest"]:
        return text  # x=2x+1 is no value of x
    return match["rest"].strip() if match and not RELATION.search(match["rest"]) else text


def coordinates(text: str) -> list[tuple[str, str]]:
    """Return the (name, value) pairs of `x=1, y=2` or `(x,y)=(1,2)`; an empty list for any other text."""
    if match := NAMED_TUPLE.fullmatch(text):
        names, values = ([part.strip() for part in split_at_commas(match[key])] for key in ("names", "values"))
    else:
        matches = [NAMED_VALUE.fullmatch(part.strip()) for part in split_at_commas(SEPARATOR.sub(",", text))]
        if len(matches) < 2 or not all(matches):
            return []
        names = [match["name"].strip() for match in matches if match]
        values = [match["value"].strip() for match in matches if match]
    return list(zip(names, values, strict=True)) if len(names) == len(values) else []


def chain_sides(text: str) -> list[str]:
    """Return the sides of `a = b \\approx c`, without the name at its beginning; a single side where the text is no chain.

    An approximation in brackets at the end, `a (\\approx c)` or `a \\text{ (about } c)`, is a side of its own.
    """
    text = ABOUT.sub(r"\\approx \g<value>", text)
    sides, start = [], 0
    for match in CHAIN_SIGN.finditer(text):
        if bracket_balance(text[: match.start()]) == 0:
            sides.append(text[start : match.start()].strip())
            start = match.end()
    sides.append(text[start:].strip())
    return sides[1:] if len(sides) > 1 and ALL_NAME.fullmatch(sides[0]) else sides


def text_answer(text: str) -> str | None:
    """Return an answer in plain language without \\text{…}, and (C) as C; None for mathematics."""
    answer = TEXT.sub(r"\1", text).strip()
    answer = answer[1:-1] if re.fullmatch(r"\([A-Za-z]\)", answer) else answer
    is_text = "\\text" in text or re.fullmatch(r"[A-Za-z]{3,}(?:[ -][A-Za-z]+)*|\([A-Z]\)|no", text, re.IGNORECASE)
    if is_text and re.fullmatch(r"[^\\{}\d=]+", answer) and not FUNCTION_NAMES.search(answer):
        return " ".join(answer.split()).strip(" .")
    return None


def split_elements(text: str, as_list: bool = False) -> tuple[str, list[str]]:
    """Return (kind, elements): kind is the pair of brackets of a tuple, interval or set, "" for a bare list or one expression.

    A bare 10,100 is one number, except with `as_list` (the other side is a list). Within brackets a comma always separates.
    """
    kind, inner = "", SEPARATOR.sub(",", text)
    if inner.startswith(r"\{") and inner.endswith(r"\}") and closes_at(inner, 1) == len(inner) - 1:
        kind, inner = "{}", inner[2:-2]
    elif inner[:1] in ("(", "[") and closes_at(inner, 0) == len(inner) - 1 and len(split_at_commas(inner[1:-1])) > 1:
        kind, inner = inner[0] + inner[-1], inner[1:-1]
    parts = [inner] if not kind and not as_list and read_number(inner) is not None else split_at_commas(inner)
    if kind in ("", "{}"):
        parts = [element for part in parts for element in split_plus_minus(part)]
    return kind, [part.strip() for part in parts]


def vector_as_tuple(text: str) -> str:
    """Return a matrix of one row or one column as a tuple such as (1,2), any other text unchanged."""
    match = VECTOR.fullmatch(text)
    if not match or r"\begin" in match["rows"]:
        return text
    rows = [row.split("&") for row in match["rows"].strip().removesuffix("\\\\").split("\\\\")]
    elements = [element.strip() for row in rows for element in row]
    if len(elements) < 2 or not all(elements) or not (len(rows) == 1 or all(len(row) == 1 for row in rows)):
        return text
    return "(" + ",".join(elements) + ")"


def cases(text: str) -> list[tuple[str, str]]:
    """Return the (value, condition) pairs of a formula defined by cases; an empty list for any other text."""
    match = CASES.fullmatch(text)
    if not match:
        return []
    rows = [row.partition("&") for row in match["rows"].split(r"\\") if row.strip()]
    return [(value.strip(" ,"), CONDITION_WORDS.sub("", condition).strip(" ,.")) for value, _, condition in rows]


def bracket_balance(text: str) -> int:
    """Return the number of opened brackets minus that of closed ones."""
    return sum(text.count(sign) for sign in "([{") - sum(text.count(sign) for sign in ")]}")


def bracket_depth(text: str) -> int:
    """Return the largest number of nested brackets."""
    deepest = level = 0
    for character in text:
        level += (character in "([{") - (character in ")]}")
        deepest = max(deepest, level)
    return deepest


def split_at_commas(text: str) -> list[str]:
    """Split at commas outside brackets; {,} is a thousands separator and does not split."""
    parts, level, start = [], 0, 0
    for position, character in enumerate(text):
        level += (character in "([{") - (character in ")]}")
        if character == "," and level == 0:
            parts.append(text[start:position])
            start = position + 1
    return [part for part in [*parts, text[start:]] if part.strip()] or [text]


def split_plus_minus(text: str) -> list[str]:
    """Return the two values of a text with one \\pm or \\mp, any other text alone."""
    text = text.replace(r"\mp", r"\pm") if r"\pm" not in text else text
    if text.count(r"\pm") != 1:
        return [text]
    return [text.replace(r"\pm", "+").removeprefix("+").strip(), text.replace(r"\pm", "-")]
