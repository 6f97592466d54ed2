"""One number, as people write it in LaTeX, read without a parser.

Integers, decimals, fractions, mixed numbers, scientific notation, repeating decimals, with thousands separators, units,
degrees, currency and percents. An expression that still has to be worked out (10+7, 2^{10}, \\sqrt{9}) is no literal.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from rlvr_sweeps.grading.latex import LONGEST, closes_at

PERCENT = re.compile(r"\\?%\s*$|\\text\s*\{\s*(?:percent|%|\\%)\s*\}\s*$")
INTEGER = re.compile(r"[+-]?\d+\Z", re.ASCII)
DIGITS = r"\d{1,3}(?:(?:,|\{,\}| )\d{3})+|\d+"
DECIMAL = rf"(?:{DIGITS})(?:\.\d*)?|\.\d+"
SIGN = r"(?P<sign>[+-]?)\s*"
FRACTION = r"(?:\\frac\s*\{\s*(?P<top>-?[^{}]+?)\s*\}\s*\{\s*(?P<bottom>-?[^{}]+?)\s*\}|(?P<over>\d+)\s*/\s*(?P<under>\d+))"
MIXED = re.compile(rf"{SIGN}(?:(?P<whole>\d+)(?: +|(?=\\frac)))?{FRACTION}\Z", re.ASCII)
POWER = r"10\s*\^\s*(?:\{\s*(?P<braced>[+-]?\d{1,3})\s*\}|(?P<digit>\d))"
SCIENTIFIC = re.compile(
    rf"{SIGN}(?:(?P<mantissa>{DECIMAL})\s*(?:(?:\\times|\\cdot|\*|x)\s*{POWER}|[eE](?P<e>[+-]?\d{{1,3}}))"
    rf"|{POWER.replace('braced', 'braced1').replace('digit', 'digit1')})\Z",
    re.ASCII,
)
REPEATING = re.compile(rf"{SIGN}(?P<whole>\d*)\.(?P<fixed>\d*)\\overline\s*\{{(?P<cycle>\d+)\}}\Z", re.ASCII)
PLAIN = re.compile(rf"{SIGN}(?P<decimal>{DECIMAL})\Z", re.ASCII)
ENOUGH_DIGITS = 6  # significant digits from which a rounded decimal stands for the exact number, as in math-verify


@dataclass(frozen=True)
class Number:
    value: Fraction
    percent: bool = False
    decimals: int | None = None  # digits after the point of a decimal of at least ENOUGH_DIGITS significant digits

    def same(self, other: "Number") -> bool:
        """Equal, or the one is the other rounded. A percent also equals the bare number before its sign."""
        if self.close(other):
            return True
        if self.percent == other.percent:
            return False
        bare = Number(self.value * 100, False, self.decimals), Number(other.value * 100, False, other.decimals)
        return bare[0].close(other) if self.percent else self.close(bare[1])

    def close(self, other: "Number") -> bool:
        apart = abs(self.value - other.value)
        known = [decimals for decimals in (self.decimals, other.decimals) if decimals is not None]
        return apart == 0 or any(apart <= Fraction(1, 2 * 10**decimals) for decimals in known)


def number(tidied: str) -> Number | None:
    """The number that a tidied text is, units dropped; None where it is not one literal number."""
    if len(tidied) > LONGEST:
        return None
    text, factor = tidied.removeprefix(r"\approx").strip(), Fraction(1)
    percent = bool(PERCENT.search(text))
    if percent:
        text = PERCENT.sub("", text).strip()
    else:
        text, factor = without_unit(text)
    if text.startswith("-") and text[1:].lstrip().startswith("("):
        text, factor = text[1:].lstrip(), -factor
    while text.startswith("(") and closes_at(text, 0) == len(text) - 1 and "," not in text:
        text = text[1:-1].strip()
    read = fraction(text) or scientific(text) or repeating(text) or decimal(text)
    if read is None:
        return None
    value, decimals = read[0] * factor, read[1] if factor in (1, -1) else None
    return Number(value / 100, True, None if decimals is None else decimals + 2) if percent else Number(value, False, decimals)


Read = tuple[Fraction, int | None] | None


def fraction(text: str) -> Read:
    """a/b and \\frac{a}{b}, with a whole number before it: 1\\frac{1}{2}, 1 1/2."""
    found = MIXED.match(text)
    if not found:
        return None
    top, bottom = decimal(found["top"] or found["over"]), decimal(found["bottom"] or found["under"])
    if top is None or bottom is None or bottom[0] == 0 or (found["whole"] and top[0] < 0):
        return None
    return signed(found, Fraction(found["whole"] or 0) + top[0] / bottom[0]), None


def scientific(text: str) -> Read:
    """2.5\\times 10^{3}, 10^{-4}, 6.02e23; exponents up to three digits."""
    found = SCIENTIFIC.match(text)
    if not found:
        return None
    power = int(next(found[name] for name in ("braced", "digit", "e", "braced1", "digit1") if found[name]))
    mantissa = decimal(found["mantissa"] or "1")
    return None if mantissa is None else (signed(found, mantissa[0] * Fraction(10) ** power), None)


def repeating(text: str) -> Read:
    """0.1\\overline{6} is 1/6."""
    found = REPEATING.match(text)
    if not found:
        return None
    fixed, cycle = found["fixed"], found["cycle"]
    once = Fraction(int((found["whole"] or "0") + fixed), 10 ** len(fixed))
    return signed(found, once + Fraction(int(cycle), 10 ** len(fixed) * (10 ** len(cycle) - 1))), None


def decimal(text: str) -> Read:
    found = PLAIN.match(text.strip())
    if not found:
        return None
    digits = re.sub(r"[,{} ]", "", found["decimal"])
    places = len(digits.partition(".")[2])
    significant = len(digits.replace(".", "").lstrip("0"))
    return signed(found, Fraction(digits)), places if places and significant >= ENOUGH_DIGITS else None


def signed(found: re.Match[str], value: Fraction) -> Fraction:
    return -value if found["sign"] == "-" else value


def canonical(integer: str) -> str:
    """Sign and leading zeros dropped; as text, so that a million digits cost nothing."""
    sign = "-" if integer.startswith("-") else ""
    digits = integer.lstrip("+-").lstrip("0") or "0"
    return digits if digits == "0" else sign + digits


EXPONENT = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|\d))?"
WORDS = (
    r"(?:centi|milli|kilo)?met(?:er|re)s?|inch(?:es)?|foot|feet|yards?|miles?|cm|mm|km|ft|in|yd|mi|kg|mg|lbs?|pounds?|ounces?|oz"
    r"|(?:kilo)?grams?|tons?|lit(?:er|re)s?|gallons?|ml|sec(?:ond)?s?|min(?:ute)?s?|hours?|hrs?|days?|weeks?|months?|years?"
    r"|degrees?|deg|radians?|rad|dollars?|cents?|usd|euros?|rupees?|mph|kph|km/h|m/s|km/s|units?|square|cubic|sq|cu|points?"
    r"|people|persons?|students?|ways?|per"
)
PLAIN_WORD = re.compile(rf"(?<=[\d}}\])])\s+(?:{WORDS})(?:\s+(?:{WORDS}))*{EXPONENT}\s*\Z", re.IGNORECASE)
SYMBOL = re.compile(rf"(?<=\d) (?:cm|mm|km|m|kg|g|s|h|K|C|V|W|J|N|Hz|Pa|eV|MeV|GeV|mol|Å){EXPONENT}\s*\Z")
IN_TEXT = re.compile(rf"\\text\s*\{{(?P<words>(?:[^{{}}\d^]|\^\{{?-?\d\}}?)*)\}}{EXPONENT}\s*\Z")
COMMAND = re.compile(rf"(?:\\degree(?:\s*[CFK])?|\\Omega|\\mu(?:\s*[a-zA-Z])?|M_\{{?\\odot\}}?|[/·]|\\cdot){EXPONENT}\s*\Z")
# In \text{…} any words are a unit, except those that say something of the number itself.
NO_UNIT = re.compile(
    r"\b(?:or|and|not|is|times|squared|cubed|half|quarter|third|plus|minus|over|mod|to|than|approximately|about|if|where|when|with"
    r"|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|hundred|thousand|million|billion|trillion"
    r"|choose|pi|sqrt|(?-i:[ixyznk]))\b",
    re.IGNORECASE,
)
MAGNITUDE = re.compile(r"\s*(?:\\text\s*\{\s*)?(hundred|thousand|million|billion|trillion)\s*\}?\s*\Z")
TIMES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def without_unit(text: str) -> tuple[str, Fraction]:
    """(`text` without the units at its end, what a word such as million multiplies it by)."""
    factor = Fraction(1)
    while True:
        if found := MAGNITUDE.search(text):
            factor *= TIMES[found[1]]
        elif found := IN_TEXT.search(text):
            if NO_UNIT.search(found["words"]) or not found["words"].strip(" .,/()-'°·"):
                break
        elif not (found := COMMAND.search(text) or PLAIN_WORD.search(text) or SYMBOL.search(text)):
            break
        if found.start() == 0:
            break
        text = text[: found.start()].strip()
    return text, factor
