"""Split a tidied LaTeX answer into its parts: the name before a value, text answers, intervals, lists, sets and tuples."""

import re

from rlvr_sweeps.grading.latex import closes_at
from rlvr_sweeps.grading.numbers import read_number

RELATION = re.compile(
    r"(?<!\\)[=<>]|\\(?:le|ge|lt|gt|ne|neq|in|subset|subseteq|equiv|approx|sim|iff|implies|to|mid)(?![A-Za-z])"
)
GREEK = "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|rho|sigma|tau|phi|psi|omega|Delta|Omega|Phi|ell"
SUBSCRIPT = r"(?:_(?:\w|\{[^{}=<>]*(?:\{[^{}]*\})?\}))?'*"
ATOM = rf"(?:\\(?:{GREEK})(?![A-Za-z])|[A-Za-z]){SUBSCRIPT}"
NAMED_THING = (  # what may precede "=": the name of a quantity, not an expression to compute
    rf"(?:{ATOM}(?:\s*[+-]?\s*{ATOM})*(?:\((?:[^()]|\([^()]*\))*\))?"  # x, AB, m+n, f(3), P(X=1)
    rf"|\\(?:angle|triangle|measuredangle)\s*[A-Z]{{1,3}}|m\\angle\s*[A-Z]{{1,3}}|\\overline\s*\{{[A-Z]{{1,2}}\}}"
    rf"|\|\s*{ATOM}+\s*\||\[[A-Z]{{3,6}}\]|\(\s*{ATOM}(?:\s*,\s*{ATOM})+\s*\)"  # |z|, [ABC], (x, y)
    r"|\\text\s*\{\s*(?!(?:[^{}]*\b(?:or|and|not)\b))[A-Za-z][A-Za-z ]*\})"
)
NAME = re.compile(rf"\s*{NAMED_THING}\s*(?P<sign>=|\\approx|\\in(?![A-Za-z]))(?P<rest>.+)\Z")
TWO_SIDED = re.compile(
    r"(?P<low>[^<>=]+?)(?P<left><|\\le(?![A-Za-z]))\s*[A-Za-z]\s*(?P<right><|\\le(?![A-Za-z]))(?P<high>[^<>=]+)\Z"
)
ONE_SIDED = re.compile(r"[A-Za-z]\s*(?P<sign><|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z]))(?P<bound>[^<>=]+)\Z")
TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
SEPARATOR = re.compile(r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|\s(?:and|or)\s|;")
FUNCTION_NAMES = re.compile(r"\b(?:sin|cos|tan|log|exp|sqrt|frac)\b")


def without_names(answer: str, gold: str) -> tuple[str, str]:
    """Return both values without their names; both texts unchanged for two variables (x=5, y=5) or a curve's equation."""
    value, expected = without_name(answer), without_name(gold)
    if RELATION.search(expected) or (expected != gold and RELATION.search(value)):
        return answer, gold
    variables = [re.match(r"([A-Za-z])\s*=", text) for text in (answer, gold)]
    if all(variables) and len({match[1] for match in variables if match}) > 1:
        return answer, gold
    return value, expected


def without_name(text: str) -> str:
    """Return the value of `x=5` or `f(2) = 5`; any other text unchanged."""
    match = NAME.match(text)
    return match["rest"].strip() if match and not RELATION.search(match["rest"]) else text


def text_answer(text: str) -> str | None:
    """Return an answer in plain language without \\text{…}, and (C) as C; None for mathematics."""
    answer = TEXT.sub(r"\1", text).strip()
    answer = answer[1:-1] if re.fullmatch(r"\([A-Za-z]\)", answer) else answer
    is_text = "\\text" in text or re.fullmatch(r"[A-Za-z]{3,}(?:[ -][A-Za-z]+)*|\([A-Z]\)", text)
    if is_text and re.fullmatch(r"[^\\{}\d=]+", answer) and not FUNCTION_NAMES.search(answer):
        return " ".join(answer.split()).strip(" .")
    return None


def as_interval(text: str) -> str:
    """Return `-2 \\le x < 7` as [-2,7), `x > 3` as (3,\\infty), all reals as (-\\infty,\\infty), any other text unchanged."""
    if re.fullmatch(r"\\mathbb\s*\{?\s*R\s*\}?|\\R", text):
        return r"(-\infty,\infty)"
    if match := TWO_SIDED.match(text):
        ends = "[" if "le" in match["left"] else "(", "]" if "le" in match["right"] else ")"
        return f"{ends[0]}{match['low'].strip()},{match['high'].strip()}{ends[1]}"
    if match := ONE_SIDED.match(text):
        bound, sign = match["bound"].strip(), match["sign"]
        if sign in ("<", r"\le"):
            return rf"(-\infty,{bound}" + ("]" if sign == r"\le" else ")")
        return ("[" if sign == r"\ge" else "(") + rf"{bound},\infty)"
    return text


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
    """Return the two values of a text with one \\pm, any other text alone."""
    if text.count(r"\pm") != 1:
        return [text]
    return [text.replace(r"\pm", "+").removeprefix("+").strip(), text.replace(r"\pm", "-")]
