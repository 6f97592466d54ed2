"""Normalise the spelling of LaTeX and of formulas in plain text: spaces, sizes, fonts, signs, braces, function names."""

import re
import unicodedata

SIGNS = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty ", "≤": r"\le ",
     "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "±": r"\pm ", "°": r"^\circ ", "∈": r"\in ", "⁄": "/",
     "Ω": r"\Omega ", "µ": r"\mu ", "μ": r"\mu ", "≈": r"\approx ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta "}
)  # fmt: skip
SUPERSCRIPTS = re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿⁱ]+")
SUBSCRIPTS = re.compile("[₀-₉]+")
VULGAR_FRACTIONS = re.compile("[¼-¾⅐-⅞]")
# A row break (\\, \\[2pt]) becomes \\; \! is removed, as in 10\!000; any other space becomes one space.
SPACES = re.compile(r"(\\\\)(?:\s*\[[^\]]*\])?|(\\!\s*)|\\[,;: ]|~|\\q?quad(?![A-Za-z])|\s+")
# Names of functions that LaTeX sets upright.
FUNCTIONS = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp|lg|max|min|gcd|lcm|det|lim|sup|inf"
GREEK = (
    "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|rho|sigma|tau|phi|psi|omega|pi|Gamma|Delta|Theta|Lambda|Sigma|Phi|Omega"
)
BRACKETS = {"lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "langle": "(", "rangle": ")"}
REPLACEMENTS = (
    (re.compile(r"\\\$|\$|\\[()]|[€£¥₹]|\\(?:pounds|euro|texteuro|yen|textsterling)(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|limits|boldmath)(?![A-Za-z])\.?"), ""),
    (re.compile(r"\\(?:[dtc]|nice|s)frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\\(?:mathrm|textrm|textup|textit|mbox|hbox|operatorname\*?|mathit|textsf|mathsf|rm)(?![A-Za-z])"), r"\\text"),
    (re.compile(r"\\mathbf\s*(?:\{\s*([RZNQ])\s*\}|([RZNQ])(?![A-Za-z]))"), r"\\mathbb{\1\2}"),
    (re.compile(r"\\(?:textbf|mathbf|boldsymbol|bold|bm)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\(?:textcolor|colorbox)\s*\{[^{}]*\}|\\color\s*\{[^{}]*\}"), ""),
    (re.compile(r"\\text\s*\{\s*([-+]?\d[\d.,]*)\s*\}"), r"\1"),
    (re.compile(r"\\text\s*\{\s*([ei])\s*\}"), r"\1"),
    (re.compile(rf"\\text\s*\{{\s*({FUNCTIONS})\s*\}}"), r"\\\1 "),
    (re.compile(r"(?<=\d)\{:\}(?=\d)"), ":"),  # 3{:}45
    (
        re.compile(
            r"(?:\\text\s*\{\s*cis\s*\}|(?<![A-Za-z\\])cis(?![A-Za-z]))\s*"
            r"(\([^()]*\)|\\frac\s*\{[^{}]*\}\s*\{[^{}]*\}|[\d.]+(?:\s*\^\s*\{?\s*\\circ\s*\}?)?|\\?[A-Za-z]+)"
        ),
        r"(\\cos \1+i\\sin \1)",
    ),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])|<="), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])|>="), r"\\ge "),
    (re.compile(r"\\neq(?![A-Za-z])|(?<![\d)])!="), r"\\ne "),
    (re.compile(r"\\var(epsilon|phi|theta|rho)(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}|\\text\s*\{\s*[Nn]o (?:real )?solutions?\s*\}"), r"\\emptyset "),
    (re.compile(r"\\(lbrace|rbrace|lbrack|rbrack|langle|rangle)(?![A-Za-z])"), lambda match: BRACKETS[match[1]]),
    (re.compile(r"\\[lr]?vert(?![A-Za-z])"), "|"),
    (re.compile(r"\\bigcup(?![A-Za-z])"), r"\\cup "),
    (re.compile(r"\\(?:cdots|dotsc|dots)(?![A-Za-z])"), r"\\ldots "),
    (re.compile(r"\^\s*\{?\s*\\text\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}?"), ""),  # 17^{\text{th}}
    (re.compile(r"\{\s*\\text\s+([^{}]*)\}"), r"\\text{\1}"),  # {\rm km}
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degrees?(?![A-Za-z])"), r"\\degree "),
    (re.compile(r"\^\s*(-?\d{2,}|-\d)(?![\d.])"), r"^{\1}"),  # 10^-3 and x^10, which TeX would set as x^1 0
    (re.compile(r"\^\s*\(\s*([+-]?\d+)\s*\)"), r"^{\1}"),
    (re.compile(r"(?<=\d)\.(?=\s*/)"), ""),  # -1./3 as Python writes it
)
# Formulas in plain text or in Python, outside \text{…}.
PLAIN = (
    (re.compile(r"(?<![A-Za-z\\])(?:np|math|numpy|sympy)\."), ""),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<=[\w)}])\s*\*\s*(?=[\w({\\])"), r" \\cdot "),
    (re.compile(r"(?<![A-Za-z\\])(?:oo|inf|infinity)(?![A-Za-z(])"), r"\\infty "),
    (re.compile(r"(?<![A-Za-z\\])a(?=(?:sin|cos|tan)\s*\()"), r"\\arc"),
    (re.compile(rf"(?<![A-Za-z\\])(?!(?<=\d)(?:min|sec)|(?<=\d )(?:min|sec))({FUNCTIONS}|sqrt)(?![A-Za-z])"), r"\\\1 "),
    (re.compile(rf"(?<![A-Za-z\\])({GREEK})(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"\\arc\\?(sin|cos|tan)"), r"\\arc\1"),
)
OPEN_INTERVAL = re.compile(r"([\[\]])([^\[\]()]*,[^\[\]()]*)([\[\]])")  # ]0,1[ for (0,1)
CHOOSE = (
    (re.compile(r"(?<![\w}])\^\s*\{?(\w+)\}?\s*C\s*_\s*(?:\{(\w+)\}|(\w))"), r"\\binom{\1}{\2\3}"),  # ^{10}C_5
    (re.compile(r"(?<![\w}])_\s*\{?(\w+)\}?\s*C\s*_\s*(?:\{(\w+)\}|(\w))"), r"\\binom{\1}{\2\3}"),  # _{10}C_5
    (re.compile(r"(?<![\w\\])C\s*_\s*(?:\{(\w+)\}|(\w))\s*\^\s*(?:\{(\w+)\}|(\w))"), r"\\binom{\1\2}{\3\4}"),  # C_{10}^5
)
ARGUMENTS = {
    "frac": 2,
    "binom": 2,
    "sqrt": 1,
    "pmod": 1,
    "dot": 1,
    "ddot": 1,
    "hat": 1,
    "vec": 1,
    "bar": 1,
    "overline": 1,
    "tilde": 1,
}
INFIX_OR_BRACE = re.compile(r"[{}]|\\(?:over|choose)(?![A-Za-z])")
COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
ROOT = re.compile(r"\s*\[[^\[\]]*\]")
ODD_ROOT_OF_NEGATIVE = re.compile(r"\\sqrt(?P<root>\[\d*[13579]\])\{\s*-(?P<radicand>[^-+{}]+)\}")  # the real root
MARKS = re.compile(r"^(?:\*\*|__|`)(.+?)(?:\*\*|__|`)$", re.DOTALL)  # Markdown's bold and code
END = re.compile(r"(?:\s|\\\\|[.,;])+\Z")
MAX_LENGTH = 1000  # characters; a longer text is graded as unparsable


def tidy(text: str) -> str:
    """Return `text` in one spelling, without braces around all of it. A text longer than MAX_LENGTH is returned unchanged."""
    if len(text) > MAX_LENGTH:
        return text
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")  # marks of width and direction
    text = SUPERSCRIPTS.sub(lambda match: "^{" + unicodedata.normalize("NFKC", match[0]) + "}", text)
    text = SUBSCRIPTS.sub(lambda match: "_{" + unicodedata.normalize("NFKC", match[0]) + "}", text)
    text = VULGAR_FRACTIONS.sub(lambda match: fraction_of(match[0]), text)
    text = unicodedata.normalize("NFKC", text.translate(SIGNS)).translate(SIGNS)
    text = SPACES.sub(lambda match: match[1] or ("" if match[2] else " "), text)
    text = MARKS.sub(r"\1", text.strip())
    for pattern, replacement in REPLACEMENTS:
        text = pattern.sub(replacement, text)
    if r"\text" not in text:
        for pattern, replacement in PLAIN:
            text = pattern.sub(replacement, text)
    for pattern, replacement in CHOOSE:
        text = pattern.sub(replacement, text)
    text = END.sub("", with_braces(text)).strip()
    if text.startswith("]") or text.endswith("["):
        text = OPEN_INTERVAL.sub(lambda match: "[("[match[1] == "]"] + match[2] + "])"[match[3] == "["], text)
    while text.startswith("{") and closes_at(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def fraction_of(sign: str) -> str:
    """Return a sign such as ½ as \\frac{1}{2}."""
    top, _, bottom = unicodedata.normalize("NFKC", sign).partition("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}" if bottom else sign


def with_braces(text: str) -> str:
    """Return the text with braces around every argument of \\frac, \\sqrt and the like, and with \\frac for {a \\over b}."""
    written, position = [], 0
    while position < len(text):
        piece, position = read_piece(text, position)
        written.append(piece)
    return infix_as_command("".join(written))


def read_piece(text: str, position: int) -> tuple[str, int]:
    """Return the group, command with its arguments, or character at `position`, with braces, and the position after it."""
    if text[position] == "{" and (end := closes_at(text, position)) > 0 and text[end] == "}":
        inner = with_braces(text[position + 1 : end])
        while inner.startswith("{") and closes_at(inner, 0) == len(inner) - 1:
            inner = inner[1:-1]
        return "{" + inner + "}" if inner.strip() else "", end + 1
    if text[position] in "^_" and text[position + 1 : position + 2] == "\\":
        argument, end = read_piece(text, position + 1)
        return text[position] + ("{" + argument + "}" if "{" in argument else argument), end
    if text[position] != "\\" or not (match := COMMAND.match(text, position)):
        return text[position], position + 1
    command, position = match[0], match.end()
    if match[1] == "sqrt" and (root := ROOT.match(text, position)):
        command, position = command + root[0].strip(), root.end()
    for _ in range(ARGUMENTS.get(match[1], 0)):
        while position < len(text) and text[position] == " ":
            position += 1
        if position == len(text) or text[position] in "}])^_&=+":
            return command, position
        if match[1] == "sqrt" and text[position] == "(" and (end := closes_at(text, position)) > 0:  # sqrt(2), \\sqrt(2)
            command, position = command + "{" + with_braces(text[position + 1 : end]) + "}", end + 1
            continue
        argument, position = read_piece(text, position)
        is_group = argument.startswith("{") and closes_at(argument, 0) == len(argument) - 1
        command += argument if is_group else "{" + argument + "}"
    if odd := ODD_ROOT_OF_NEGATIVE.fullmatch(command):
        command = rf"(-\sqrt{odd['root']}{{{odd['radicand']}}})"
    return command, position


def infix_as_command(text: str) -> str:
    """Return `a \\over b` as \\frac{a}{b}, and `n \\choose k` as \\binom{n}{k}; any other text unchanged."""
    level = 0
    for match in INFIX_OR_BRACE.finditer(text):
        if match[0] in "{}":
            level += 1 if match[0] == "{" else -1
        elif level == 0:
            name = "frac" if match[0] == r"\over" else "binom"
            return rf"\{name}{{{text[: match.start()].strip()}}}{{{text[match.end() :].strip()}}}"
    return text


def closes_at(text: str, start: int) -> int:
    """Return the position at which the bracket opened at `start` closes, -1 if it does not. Any closing bracket counts."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in "([{") - (text[position] in ")]}")
        if depth == 0:
            return position
    return -1
