"""What may stand after a number without changing which number it is, and what multiplies it."""

import re
from fractions import Fraction

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
