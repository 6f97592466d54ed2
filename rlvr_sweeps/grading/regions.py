"""Read inequalities, set-builder notation and unions as a union of intervals, in one spelling.

`x<-1 or x>2` and `\\{x \\mid x<-1\\} \\cup (2,\\infty)` become `(-\\infty,-1)\\cup(2,\\infty)`. Bounds stay text.
"""

import re

from rlvr_sweeps.grading.latex import closes_at
from rlvr_sweeps.grading.structure import bracket_balance

VARIABLE = r"(?:[A-Za-z]|\\(?:theta|alpha|beta|lambda|mu|phi))"
LESS, MORE = r"<|\\le(?![A-Za-z])", r">|\\ge(?![A-Za-z])"
BOUND = r"[^<>=|]+?"
TWO_SIDED = re.compile(rf"(?P<low>{BOUND})\s*(?P<left>{LESS})\s*{VARIABLE}\s*(?P<right>{LESS})\s*(?P<high>{BOUND})\Z")
TURNED = re.compile(rf"(?P<high>{BOUND})\s*(?P<right>{MORE})\s*{VARIABLE}\s*(?P<left>{MORE})\s*(?P<low>{BOUND})\Z")
ONE_SIDED = re.compile(rf"{VARIABLE}\s*(?P<sign>{LESS}|{MORE})\s*(?P<bound>{BOUND})\Z")
ONE_SIDED_TURNED = re.compile(rf"(?P<bound>{BOUND})\s*(?P<sign>{LESS}|{MORE})\s*{VARIABLE}\Z")
NOT_EQUAL = re.compile(rf"{VARIABLE}\s*\\ne(?![A-Za-z])\s*(?P<bound>[^<>=,]+)\Z")
REALS = re.compile(r"\\mathbb\s*\{?\s*R\s*\}?|\\R|\\text\s*\{\s*all real(?: number)?s?\s*\}|all real(?: number)?s?")
MEMBER = re.compile(rf"{VARIABLE}\s*\\in(?![A-Za-z])\s*(?P<set>.+)\Z")
BUILDER = re.compile(
    rf"\\\{{\s*{VARIABLE}\s*(?:\\in\s*(?:\\mathbb\s*\{{?\s*R\s*\}}?|\\R)\s*)?(?:\\mid|\\vert|\\colon|:|\|)\s*(?P<condition>.+?)\s*\\\}}\Z"
)
OR = re.compile(r"\\text\s*\{\s*or\s*\}|\s+or\s+|\\lor(?![A-Za-z])|\\vee(?![A-Za-z])|\\cup(?![A-Za-z])")
AND = re.compile(r"\\text\s*\{\s*and\s*\}|\s+and\s+|\\land(?![A-Za-z])|\\wedge(?![A-Za-z])")
UNION = r"\cup"


def as_region(text: str) -> str:
    """Return a text that states a union of intervals in one spelling; any other text unchanged."""
    pieces = region(text)
    return text if pieces is None else UNION.join(pieces)


def region(text: str) -> list[str] | None:
    """Return the intervals that a text states; None where it does not state a union of intervals by a relation or a union."""
    text = text.strip()
    if REALS.fullmatch(text):
        return [r"(-\infty,\infty)"]
    if match := BUILDER.match(text):
        return region(match["condition"])
    if len(parts := split_outside(text, OR)) > 1:
        pieces = [region(part) or interval(part) for part in parts]
        return [each for piece in pieces for each in piece or []] if all(pieces) else None
    if len(parts := split_outside(text, AND)) == 2:
        first, second = (region(part) for part in parts)
        return intersection(first, second) if first and second else None
    if match := MEMBER.match(text):
        return region(match["set"]) or interval(match["set"])
    if match := TWO_SIDED.match(text) or TURNED.match(text):
        ends = "[" if "e" in match["left"] else "(", "]" if "e" in match["right"] else ")"
        return [f"{ends[0]}{match['low'].strip()},{match['high'].strip()}{ends[1]}"]
    if match := NOT_EQUAL.match(text):
        bound = match["bound"].strip()
        return [rf"(-\infty,{bound})", rf"({bound},\infty)"]
    for pattern, turned in ((ONE_SIDED, False), (ONE_SIDED_TURNED, True)):
        if match := pattern.match(text):
            bound, closed = match["bound"].strip(), "e" in match["sign"]
            if (match["sign"] in ("<", r"\le")) != turned:
                return [rf"(-\infty,{bound}" + ("]" if closed else ")")]
            return [("[" if closed else "(") + rf"{bound},\infty)"]
    return None


def interval(text: str) -> list[str] | None:
    """Return a text that is one interval as a list; None for any other text."""
    text = text.strip()
    is_one = text[:1] in ("(", "[") and text[-1:] in (")", "]") and closes_at(text, 0) == len(text) - 1 and "," in text
    return [text] if is_one else None


def intersection(first: list[str], second: list[str]) -> list[str] | None:
    """Return the interval between one lower and one upper bound; None for any other two regions."""
    if len(first) != 1 or len(second) != 1:
        return None
    lower, upper = sorted((first[0], second[0]), key=lambda piece: piece.startswith(r"(-\infty,"))
    if not lower.endswith(r",\infty)") or not upper.startswith(r"(-\infty,") or lower.startswith(r"(-\infty,"):
        return None
    return [lower.removesuffix(r"\infty)") + upper.removeprefix(r"(-\infty,")]


def split_outside(text: str, pattern: re.Pattern[str]) -> list[str]:
    """Return the parts of a text between the matches of a pattern that are outside all brackets."""
    parts, start = [], 0
    for match in pattern.finditer(text):
        if bracket_balance(text[: match.start()]) == 0:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()]
