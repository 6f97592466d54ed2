"""The same LaTeX in one spelling: spaces, sizes, fonts, signs of other alphabets, dollar signs, a final full stop."""

import re
import unicodedata

SIGNS = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty ", "≤": r"\le ",
     "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "±": r"\pm ", "°": r"^\circ ", "∈": r"\in ", "⁄": "/",
     "Ω": r"\Omega ", "µ": r"\mu ", "μ": r"\mu "}
)  # fmt: skip
SUPERSCRIPTS = re.compile("[⁰¹²³⁴-⁹⁺⁻]+")
VULGAR = re.compile("[¼-¾⅐-⅞]")
# A row break (\\, \\[2pt]) is kept; \! draws digits together; other spaces become one.
SPACES = re.compile(r"(\\\\)(?:\s*\[[^\]]*\])?|(\\!\s*)|\\[,;: ]|~|\\q?quad(?![A-Za-z])|\s+")
SAME_AS = (
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
LONGEST = 1000  # characters; what is longer is no answer that anything here reads


def tidy(text: str) -> str:
    """`text` in one spelling, without the braces around the whole. Longer texts than LONGEST come back as they are."""
    if len(text) > LONGEST:
        return text
    text = SUPERSCRIPTS.sub(lambda found: "^{" + unicodedata.normalize("NFKC", found[0]) + "}", text)
    text = VULGAR.sub(lambda found: " " + unicodedata.normalize("NFKC", found[0]), text)
    text = unicodedata.normalize("NFKC", text.translate(SIGNS)).translate(SIGNS)
    text = SPACES.sub(lambda found: found[1] or ("" if found[2] else " "), text)
    for pattern, replacement in SAME_AS:
        text = pattern.sub(replacement, text)
    text = text.strip().removesuffix(".").strip()
    while text.startswith("{") and closes_at(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def closes_at(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes, whatever its kind closes with; -1 if nowhere."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in "([{") - (text[position] in ")]}")
        if depth == 0:
            return position
    return -1
