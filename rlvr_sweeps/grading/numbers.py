"""Read one literal number from tidied LaTeX with regular expressions, without its unit.

Integers, decimals, fractions, mixed numbers, scientific notation and repeating decimals; with thousands separators, units,
degrees, currencies, percent signs and words such as million. An expression that must be computed (10+7, 2^{10}, \\sqrt{9}) is
not a literal number.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from rlvr_sweeps.grading.latex import MAX_LENGTH, closes_at
from rlvr_sweeps.grading.units import Unit, read_unit

PERCENT = re.compile(r"\\?%\s*$|\\text\s*\{\s*(?:percent|%|\\%)\s*\}\s*$|(?<=\d)\s*percent\s*$")
INTEGER = re.compile(r"[+-]?\d+\Z", re.ASCII)
DIGITS = r"\d{1,3}(?:(?:,|\{,\}| )\d{3})+|\d+"
DECIMAL = rf"(?:{DIGITS})(?:\.\d*)?|\.\d+"
SIGN = r"(?P<sign>[+-]?)\s*"
INTEGER_IN_BRACKETS = r"(?:\d+|\(-?\d+\))"
FRACTION = (
    r"(?:\\frac\s*\{\s*(?P<top>-?[^{}]+?)\s*\}\s*\{\s*(?P<bottom>-?[^{}]+?)\s*\}"
    rf"|(?P<over>{INTEGER_IN_BRACKETS})\s*/\s*(?P<under>-?{INTEGER_IN_BRACKETS}))"
)
MIXED = re.compile(rf"{SIGN}(?:(?P<whole>\d+)(?: +|(?=\\frac)))?{FRACTION}\Z", re.ASCII)
POWER = r"10\s*\^\s*(?:\{\s*(?P<braced>[+-]?\d{1,3})\s*\}|(?P<digit>\d))"
SCIENTIFIC = re.compile(
    rf"{SIGN}(?:(?P<mantissa>{DECIMAL})\s*(?:(?:\\times|\\cdot|\*|x)\s*{POWER}|[eE](?P<e>[+-]?\d{{1,3}}))"
    rf"|{POWER.replace('braced', 'braced1').replace('digit', 'digit1')})\Z",
    re.ASCII,
)
REPEATING = re.compile(rf"{SIGN}(?P<whole>\d*)\.(?P<fixed>\d*)\\overline\s*\{{(?P<cycle>\d+)\}}\Z", re.ASCII)
DOTTED = re.compile(r"\\dot\s*\{(\d)\}(?:(\d*)\\dot\s*\{(\d)\})?")  # 0.\dot{1}4\dot{2} for 0.142142…
ABBREVIATED = re.compile(  # 0.1666\ldots: a digit three times, or several digits twice
    r"(?P<start>[+-]?\s*\d*\.\d*?)(?:(?P<digit>\d)(?P=digit){2,}|(?P<block>\d{2,6})(?P=block)+)\s*(?:\\ldots|\.\.\.|…)"
)
PLAIN = re.compile(rf"{SIGN}(?P<decimal>{DECIMAL})\Z", re.ASCII)
ENOUGH_DIGITS = 6  # significant digits from which a rounded decimal stands for the exact number, as in math-verify
EXPONENT = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|\d))?"
UNIT_WORDS = (
    r"(?:centi|milli|kilo)?met(?:er|re)s?|inch(?:es)?|foot|feet|yards?|miles?|cm|mm|km|ft|in|yd|mi|kg|mg|lbs?|pounds?|ounces?|oz"
    r"|(?:kilo)?grams?|tons?|lit(?:er|re)s?|gallons?|ml|sec(?:ond)?s?|min(?:ute)?s?|hours?|hrs?|days?|weeks?|months?|years?"
    r"|degrees?|deg|radians?|rad|dollars?|cents?|usd|euros?|rupees?|mph|kph|km/h|m/s|km/s|units?|square|cubic|sq|cu|points?"
    r"|people|persons?|students?|ways?|per"
)
PLAIN_WORD = re.compile(rf"(?<=[\d}}\])])\s*(?:{UNIT_WORDS})(?:\s+(?:{UNIT_WORDS}))*{EXPONENT}\s*\Z", re.IGNORECASE)
ANY_WORDS = re.compile(r"(?<=\d)\s+(?P<words>(?=\w*[aeiou])[a-z]{4,}(?:\s+[a-z]{2,}){0,3})\s*\Z")
IN_BRACES = r"\{\s*\\text\s*\{[^{}\d]*\}" + EXPONENT + r"\s*\}"
TEXT_FRACTION = re.compile(rf"\\frac\s*{IN_BRACES}\s*{IN_BRACES}\s*\Z")
SYMBOL_NAMES = r"[fpnumcdkMGT]?(?:m|g|s|Hz|N|J|W|Pa|V|A|K|C|F|eV|L|l|mol|cal|bar)|h|Å|AU|pc|kpc|Mpc|ly|atm|erg|rpm|dB"
SYMBOL = re.compile(rf"(?<=\d) (?:{SYMBOL_NAMES}){EXPONENT}(?:\s*[/ ]\s*(?:{SYMBOL_NAMES}){EXPONENT})*\s*\Z")
LETTER_UNIT = re.compile(rf"{SYMBOL.pattern}|\\(?:Omega|mu)(?![A-Za-z])")
IN_TEXT = re.compile(rf"\\text\s*\{{(?P<words>(?:[^{{}}\d^]|\^\{{?-?\d\}}?)*)\}}{EXPONENT}\s*\Z")
COMMAND = re.compile(rf"(?:\\degree(?:\s*[CFK])?|\\Omega|\\mu(?:\s*[a-zA-Z])?|M_\{{?\\odot\}}?|[/·]|\\cdot){EXPONENT}\s*\Z")
UNITS = (COMMAND, PLAIN_WORD, SYMBOL, TEXT_FRACTION)
# Any words in \text{…} are a unit, except words that change or replace the number.
NO_UNIT = re.compile(
    r"\b(?:or|and|not|is|times|squared|cubed|half|quarter|third|plus|minus|over|mod|to|than|approximately|about|if|where|when|with"
    r"|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|hundred|thousand|million|billion|trillion"
    r"|choose|pi|sqrt|factorials?|negative|opposite|inverse|reciprocal|roots?|power|base|more|less|fewer|least|most|exponent"
    r"|(?:ten|hundred|thousand|million|billion|four|fif|six|seven|eigh|nin|eleven|twelf|\w+teen|\w+tie)ths?|hal(?:f|ves)|thirds"
    r"|quarters|gross|score|lakh|crore|pairs?|doubled?|tripled?|January|February|March|April|May|June|July|August|September"
    r"|October|November|December|(?-i:[ixyznk]))\b",
    re.IGNORECASE,
)
MAGNITUDE = re.compile(r"\s*(?:\\text\s*\{\s*)?(hundred|thousand|million|billion|trillion)\s*\}?\s*\Z")
FACTORS = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
ReadResult = tuple[Fraction, int | None] | None  # the value, and Number.decimals


@dataclass(frozen=True)
class Number:
    """A literal number and the precision with which it is written."""

    value: Fraction
    percent: bool = False
    decimals: int | None = None  # of a decimal of at least ENOUGH_DIGITS significant digits: the last is 10^-decimals
    rounded: bool = False  # whether it is written as a decimal or with a power of ten, so that it may be a rounded value
    unit: Unit | None = None  # None: no unit, or an unknown one

    def in_unit(self, unit: Unit) -> "Number | None":
        """Return the number in another unit; None where the two measure different quantities. A number without unit has it."""
        if self.unit is None or self.unit == unit:
            return self
        return Number(self.value * self.unit.size / unit.size, self.percent) if self.unit.powers == unit.powers else None

    def divided(self, places: int) -> "Number":
        """Return this number divided by 10^places."""
        decimals = None if self.decimals is None else self.decimals + places
        return replace(self, value=self.value / Fraction(10) ** places, decimals=decimals)

    def is_close(self, other: "Number") -> bool:
        """Return whether the two are equal, or one is the other rounded."""
        distance = abs(self.value - other.value)
        known = [decimals for decimals in (self.decimals, other.decimals) if decimals is not None]
        return distance == 0 or any(distance <= Fraction(10) ** -decimals / 2 for decimals in known)


def read_number(tidied: str) -> Number | None:
    """Return the number that a tidied text states, with its unit; None where the text is not one literal number."""
    if len(tidied) > MAX_LENGTH:
        return None
    text, factor = tidied.removeprefix(r"\approx").strip(), Fraction(1)
    percent, unit = bool(PERCENT.search(text)), None
    if percent:
        text = PERCENT.sub("", text).strip()
    else:
        number, factor = without_unit(text)
        text, unit = number, read_unit(text[len(number) :].strip()) if len(number) < len(text) else None
    if text.startswith("-") and text[1:].lstrip().startswith("("):
        text, factor = text[1:].lstrip(), -factor
    while text.startswith("(") and closes_at(text, 0) == len(text) - 1 and "," not in text:
        text = text[1:-1].strip()
    exact = read_fraction(text) or read_repeating(text)
    scientific = None if exact else read_scientific(text)
    parsed = exact or scientific or read_decimal(text)
    if parsed is None:
        return None
    rounded = not exact and (bool(scientific) or "." in text)
    value, decimals = parsed[0] * factor, parsed[1] if factor in (1, -1) else None
    if percent:
        value, decimals = value / 100, None if decimals is None else decimals + 2
    return Number(value, percent, decimals, rounded, unit)


def read_fraction(text: str) -> ReadResult:
    """Read a/b or \\frac{a}{b}, also after a whole number: 1\\frac{1}{2}, 1 1/2."""
    match = MIXED.match(text)
    if not match:
        return None
    top = read_decimal((match["top"] or match["over"]).strip("()"))
    bottom = read_decimal((match["bottom"] or match["under"]).strip("()"))
    if top is None or bottom is None or bottom[0] == 0 or (match["whole"] and top[0] < 0):
        return None
    return signed(match, Fraction(match["whole"] or 0) + top[0] / bottom[0]), None


def read_scientific(text: str) -> ReadResult:
    """Read 2.5\\times 10^{3}, 10^{-4} or 6.02e23, with an exponent of at most three digits."""
    match = SCIENTIFIC.match(text)
    if not match:
        return None
    power = int(next(match[name] for name in ("braced", "digit", "e", "braced1", "digit1") if match[name]))
    mantissa = read_decimal(match["mantissa"] or "1")
    if mantissa is None:
        return None
    return signed(match, mantissa[0] * Fraction(10) ** power), None if mantissa[1] is None else mantissa[1] - power


def read_repeating(text: str) -> ReadResult:
    """Read a repeating decimal: 0.1\\overline{6}, 0.1\\dot{6} and 0.1666\\ldots are 1/6."""
    text = DOTTED.sub(r"\\overline{\1\2\3}", text)
    if abbreviated := ABBREVIATED.fullmatch(text):
        text = abbreviated["start"] + rf"\overline{{{abbreviated['block'] or abbreviated['digit']}}}"
    match = REPEATING.match(text)
    if not match:
        return None
    fixed, cycle = match["fixed"], match["cycle"]
    leading = Fraction(int((match["whole"] or "0") + fixed), 10 ** len(fixed))
    return signed(match, leading + Fraction(int(cycle), 10 ** len(fixed) * (10 ** len(cycle) - 1))), None


def read_decimal(text: str) -> ReadResult:
    """Read an integer or a decimal, with or without thousands separators."""
    match = PLAIN.match(text.strip())
    if not match:
        return None
    digits = re.sub(r"[,{} ]", "", match["decimal"])
    decimals = len(digits.partition(".")[2])
    significant = len(digits.replace(".", "").lstrip("0"))
    return signed(match, Fraction(digits)), decimals if decimals and significant >= ENOUGH_DIGITS else None


def signed(match: re.Match[str], value: Fraction) -> Fraction:
    return -value if match["sign"] == "-" else value


def canonical_integer(integer: str) -> str:
    """Return an integer's text without a plus sign and leading zeros. As text, since int() of a million digits is slow."""
    sign = "-" if integer.startswith("-") else ""
    digits = integer.lstrip("+-").lstrip("0") or "0"
    return digits if digits == "0" else sign + digits


def without_unit(text: str) -> tuple[str, Fraction]:
    """Return (`text` without the units at its end, the factor of words such as million)."""
    factor = Fraction(1)
    while True:
        if match := MAGNITUDE.search(text):
            factor *= FACTORS[match[1]]
        elif match := IN_TEXT.search(text):
            if NO_UNIT.search(match["words"]) or not match["words"].strip(" .,/()-'°·"):
                break
        elif match := ANY_WORDS.search(text):
            if NO_UNIT.search(match["words"]) and not PLAIN_WORD.search(text):
                break
        elif not (match := next(filter(None, (unit.search(text) for unit in UNITS)), None)):
            break
        if match.start() == 0:
            break
        text = text[: match.start()].strip()
    return text, factor
