"""Normalise the spelling of LaTeX: spaces, sizes, fonts, Unicode signs, dollar signs, a final full stop."""

import re
import unicodedata

SIGNS = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty ", "≤": r"\le ",
     "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "±": r"\pm ", "°": r"^\circ ", "∈": r"\in ", "⁄": "/",
     "Ω": r"\Omega ", "µ": r"\mu ", "μ": r"\mu "}
)  # fmt: skip
SUPERSCRIPTS = re.compile("[⁰¹²³⁴-⁹⁺⁻]+")
VULGAR_FRACTIONS = re.compile("[¼-¾⅐-⅞]")
# A row break (\\, \\[2pt]) becomes \\; \! is removed, as in 10\!000; any other space becomes one space.
SPACES = re.compile(r"(\\\\)(?:\s*\[[^\]]*\])?|(\\!\s*)|\\[,;: ]|~|\\q?quad(?![A-Za-z])|\s+")
REPLACEMENTS = (
    (re.compile(r"\\\$|\$|\\[()]"), ""),
    (re.compile(r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits)(?![A-Za-z])"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:mathrm|textrm|textup|textit|mbox|operatorname|mathit|rm)(?![A-Za-z])"), r"\\text"),
    (re.compile(r"\\(?:textbf|mathbf|boldsymbol|bold|bm)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\text\s*\{\s*([-+]?\d[\d.,]*)\s*\}"), r"\1"),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])"), r"\\le"),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])"), r"\\ge"),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degrees?(?![A-Za-z])"), r"\\degree "),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*\{([^{}]*)\}\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"\\sqrt\s*(\[[^\[\]]*\])\s*(\w)"), r"\\sqrt\1{\2}"),
    (re.compile(r"\{\s*\}"), ""),
)
MAX_LENGTH = 1000  # characters; a longer text is graded as unparsable


def tidy(text: str) -> str:
    """Return `text` in one spelling, without braces around all of it. A text longer than MAX_LENGTH is returned unchanged."""
    if len(text) > MAX_LENGTH:
        return text
    text = SUPERSCRIPTS.sub(lambda match: "^{" + unicodedata.normalize("NFKC", match[0]) + "}", text)
    text = VULGAR_FRACTIONS.sub(lambda match: " " + unicodedata.normalize("NFKC", match[0]), text)
    text = unicodedata.normalize("NFKC", text.translate(SIGNS)).translate(SIGNS)
    text = SPACES.sub(lambda match: match[1] or ("" if match[2] else " "), text)
    for pattern, replacement in REPLACEMENTS:
        text = pattern.sub(replacement, text)
    text = text.strip().removesuffix(".").strip()
    while text.startswith("{") and closes_at(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def closes_at(text: str, start: int) -> int:
    """Return the position at which the bracket opened at `start` closes, -1 if it does not. Any closing bracket counts."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in "([{") - (text[position] in ")]}")
        if depth == 0:
            return position
    return -1
