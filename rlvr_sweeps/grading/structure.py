"""How a tidied LaTeX answer is put together: the name before its value, words, intervals, lists, sets and tuples."""

import re

from rlvr_sweeps.grading.latex import closes_at
from rlvr_sweeps.grading.numbers import number

RELATION = re.compile(
    r"(?<!\\)[=<>]|\\(?:le|ge|lt|gt|ne|neq|in|subset|subseteq|equiv|approx|sim|iff|implies|to|mid)(?![A-Za-z])"
)
GREEK = "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|rho|sigma|tau|phi|psi|omega|Delta|Omega|Phi|ell"
SUBSCRIPT = r"(?:_(?:\w|\{[^{}=<>]*(?:\{[^{}]*\})?\}))?'*"
ATOM = rf"(?:\\(?:{GREEK})(?![A-Za-z])|[A-Za-z]){SUBSCRIPT}"
CALLED = (  # what may stand before "=": something that has a name, nothing that is calculated
    rf"(?:{ATOM}(?:\s*[+-]?\s*{ATOM})*(?:\((?:[^()]|\([^()]*\))*\))?"  # x, AB, m+n, f(3), P(X=1)
    rf"|\\(?:angle|triangle|measuredangle)\s*[A-Z]{{1,3}}|m\\angle\s*[A-Z]{{1,3}}|\\overline\s*\{{[A-Z]{{1,2}}\}}"
    rf"|\|\s*{ATOM}+\s*\||\[[A-Z]{{3,6}}\]|\(\s*{ATOM}(?:\s*,\s*{ATOM})+\s*\)"  # |z|, [ABC], (x, y)
    r"|\\text\s*\{\s*(?!(?:[^{}]*\b(?:or|and|not)\b))[A-Za-z][A-Za-z ]*\})"
)
NAME = re.compile(rf"\s*{CALLED}\s*(?P<sign>=|\\approx|\\in(?![A-Za-z]))(?P<rest>.+)\Z")
BETWEEN = re.compile(
    r"(?P<low>[^<>=]+?)(?P<left><|\\le(?![A-Za-z]))\s*[A-Za-z]\s*(?P<right><|\\le(?![A-Za-z]))(?P<high>[^<>=]+)\Z"
)
ONE_SIDED = re.compile(r"[A-Za-z]\s*(?P<sign><|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z]))(?P<bound>[^<>=]+)\Z")
WORDS = re.compile(r"\\text\s*\{([^{}]*)\}")
AND = re.compile(r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|\s(?:and|or)\s|;")
FUNCTION_NAMES = re.compile(r"\b(?:sin|cos|tan|log|exp|sqrt|frac)\b")


def without_names(answer: str, gold: str) -> tuple[str, str]:
    """Both values alone, where that is what is compared: not two variables' (x=5, y=5), not a curve's equation."""
    value, expected = unnamed(answer), unnamed(gold)
    if RELATION.search(expected) or (expected != gold and RELATION.search(value)):
        return answer, gold
    variables = [re.match(r"([A-Za-z])\s*=", text) for text in (answer, gold)]
    if all(variables) and len({found[1] for found in variables if found}) > 1:
        return answer, gold
    return value, expected


def unnamed(text: str) -> str:
    """`x=5` and `f(2) = 5` without the name: the value alone. Anything else as it is."""
    found = NAME.match(text)
    return found["rest"].strip() if found and not RELATION.search(found["rest"]) else text


def as_word(text: str) -> str | None:
    """The words of an answer in words, (C) as C; None for mathematics."""
    words = WORDS.sub(r"\1", text).strip()
    words = words[1:-1] if re.fullmatch(r"\([A-Za-z]\)", words) else words
    is_text = "\\text" in text or re.fullmatch(r"[A-Za-z]{3,}(?:[ -][A-Za-z]+)*|\([A-Z]\)", text)
    if is_text and re.fullmatch(r"[^\\{}\d=]+", words) and not FUNCTION_NAMES.search(words):
        return " ".join(words.split()).strip(" .")
    return None


def as_interval(text: str) -> str:
    """`-2 \\le x < 7` as [-2,7), `x > 3` as (3,\\infty), all reals as (-\\infty,\\infty)."""
    if re.fullmatch(r"\\mathbb\s*\{?\s*R\s*\}?|\\R", text):
        return r"(-\infty,\infty)"
    if found := BETWEEN.match(text):
        ends = "[" if "le" in found["left"] else "(", "]" if "le" in found["right"] else ")"
        return f"{ends[0]}{found['low'].strip()},{found['high'].strip()}{ends[1]}"
    if found := ONE_SIDED.match(text):
        bound, sign = found["bound"].strip(), found["sign"]
        if sign in ("<", r"\le"):
            return rf"(-\infty,{bound}" + ("]" if sign == r"\le" else ")")
        return ("[" if sign == r"\ge" else "(") + rf"{bound},\infty)"
    return text


def elements(text: str, a_list: bool = False) -> tuple[str, list[str]]:
    """(kind, elements): kind is the pair of brackets of a tuple, interval or set, or "" for a bare list or one expression.

    A bare 10,100 is one number, unless it answers a list (`a_list`); within brackets a comma always separates.
    """
    kind, inner = "", AND.sub(",", text)
    if inner.startswith(r"\{") and inner.endswith(r"\}") and closes_at(inner, 1) == len(inner) - 1:
        kind, inner = "{}", inner[2:-2]
    elif inner[:1] in ("(", "[") and closes_at(inner, 0) == len(inner) - 1 and len(commas(inner[1:-1])) > 1:
        kind, inner = inner[0] + inner[-1], inner[1:-1]
    parts = [inner] if not kind and not a_list and number(inner) is not None else commas(inner)
    if kind in ("", "{}"):
        parts = [element for part in parts for element in both_signs(part)]
    return kind, [part.strip() for part in parts]


def depth(text: str) -> int:
    """How deep brackets stand within brackets."""
    deepest = now = 0
    for character in text:
        now += (character in "([{") - (character in ")]}")
        deepest = max(deepest, now)
    return deepest


def commas(text: str) -> list[str]:
    """Split at commas outside of brackets; {,} is a thousands separator."""
    parts, level, start = [], 0, 0
    for position, character in enumerate(text):
        level += (character in "([{") - (character in ")]}")
        if character == "," and level == 0:
            parts.append(text[start:position])
            start = position + 1
    return [part for part in [*parts, text[start:]] if part.strip()] or [text]


def both_signs(text: str) -> list[str]:
    if text.count(r"\pm") != 1:
        return [text]
    return [text.replace(r"\pm", "+").removeprefix("+").strip(), text.replace(r"\pm", "-")]
