"""Read the unit after a number, so that 5 km is 5000 m and neither 5 m nor 5 kg. An unknown word is no unit.

The library pint is not used: it reads ordinary words as units (pint 0.25 reads `units` as the micronit, `points` as a length
and AU as an absorbance), which would refuse right answers.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

Entry = tuple[Fraction | int, str]  # the size in SI units, and the powers of base units
PREFIXES = {"f": -15, "p": -12, "n": -9, "μ": -6, "u": -6, "m": -3, "c": -2, "d": -1, "k": 3, "M": 6, "G": 9, "T": 12}
ENERGY = "kg m^2 s^-2"
SYMBOLS: dict[str, Entry] = {  # these may have a prefix
    "m": (1, "m"), "g": (Fraction(1, 1000), "kg"), "s": (1, "s"), "A": (1, "A"), "K": (1, "K"), "mol": (1, "mol"),
    "Hz": (1, "s^-1"), "N": (1, "kg m s^-2"), "J": (1, ENERGY), "W": (1, "kg m^2 s^-3"), "Pa": (1, "kg m^-1 s^-2"),
    "V": (1, "kg m^2 s^-3 A^-1"), "C": (1, "A s"), "F": (1, "A^2 s^4 kg^-1 m^-2"), "T": (1, "kg s^-2 A^-1"),
    "Ω": (1, "kg m^2 s^-3 A^-2"), "eV": (Fraction(1602176634, 10**28), ENERGY), "L": (Fraction(1, 1000), "m^3"),
    "l": (Fraction(1, 1000), "m^3"), "bar": (10**5, "kg m^-1 s^-2"), "cal": (Fraction(4184, 1000), ENERGY),
}  # fmt: skip
INCH, MILE = Fraction(254, 10_000), Fraction(1609344, 1000)
WORDS: dict[str, Entry] = {  # units without a prefix, in lower case and in the singular
    "min": (60, "s"), "minute": (60, "s"), "h": (3600, "s"), "hr": (3600, "s"), "hour": (3600, "s"), "sec": (1, "s"),
    "second": (1, "s"), "day": (86_400, "s"), "week": (604_800, "s"), "month": (1, "month"), "year": (12, "month"),
    "inch": (INCH, "m"), "in": (INCH, "m"), "foot": (12 * INCH, "m"), "feet": (12 * INCH, "m"), "ft": (12 * INCH, "m"),
    "yard": (36 * INCH, "m"), "yd": (36 * INCH, "m"), "mile": (MILE, "m"), "mi": (MILE, "m"), "mph": (MILE / 3600, "m s^-1"),
    "kph": (Fraction(1000, 3600), "m s^-1"), "å": (Fraction(1, 10**10), "m"), "pound": (1, "pound"), "lb": (1, "pound"),
    "ounce": (Fraction(1, 16), "pound"), "oz": (Fraction(1, 16), "pound"), "erg": (Fraction(1, 10**7), ENERGY),
    "atm": (101_325, "kg m^-1 s^-2"), "gallon": (1, "gallon"), "degree": (1, "degree"), "deg": (1, "degree"),
    "radian": (1, "radian"), "rad": (1, "radian"), "dollar": (1, "dollar"), "usd": (1, "dollar"),
    "cent": (Fraction(1, 100), "dollar"), "euro": (1, "euro"), "au": (1, "au"), "pc": (1, "pc"), "ly": (1, "ly"),
}  # fmt: skip
LONG = {
    "meter": "m", "metre": "m", "gram": "g", "liter": "L", "litre": "L", "volt": "V", "watt": "W", "joule": "J", "newton": "N",
    "pascal": "Pa", "hertz": "Hz", "ohm": "Ω", "kelvin": "K", "ampere": "A", "amp": "A", "coulomb": "C", "tesla": "T",
}  # fmt: skip
LONG_PREFIXES = {"nano": "n", "micro": "μ", "milli": "m", "centi": "c", "kilo": "k", "mega": "M", "giga": "G", "": ""}
EXPONENT = re.compile(r"\s*\^\s*\{?\s*(-?\d)\s*\}?")
LOOSE = re.compile(r"(?<=μ)\s+|\s+(?=\^)|(?<=[kMGm])\s+(?=Ω)")  # spaces within a unit
QUOTIENT = re.compile(r"\\frac\s*\{(.*)\}\s*\{(.*)\}")
TOKEN = re.compile(
    r"(?P<over>/)|(?P<square>square|sq|cubic|cu)(?![A-Za-z])|(?P<name>[A-Za-zμΩÅå]+)(?:\^(?P<power>-?\d))?|(?P<other>[^\s.()])"
)


@dataclass(frozen=True)
class Unit:
    """A unit by its size and its powers of base units."""

    size: Fraction
    powers: frozenset[tuple[str, int]]


@lru_cache(4096)
def read_unit(text: str) -> Unit | None:
    """Return the unit that tidied text after a number states; None where there is none, or where a part of it is unknown."""
    text = QUOTIENT.sub(r"\1/\2", EXPONENT.sub(r"^\1 ", text))
    for command, plain in (
        (r"\text", " "),
        (r"\cdot", " "),
        ("·", " "),
        (r"\mu", "μ"),
        (r"\Omega", "Ω"),
        (r"\degree", " degree "),
    ):
        text = text.replace(command, plain)
    text = LOOSE.sub("", re.sub(r"[{}]", " ", text))
    text = re.sub(r"\bper\b", "/", text)
    size, powers, sign, factor = Fraction(1), dict[str, int](), 1, 1
    for token in TOKEN.finditer(text):
        if token["over"]:
            sign = -1
        elif token["square"]:
            factor = 2 if token["square"].startswith("sq") else 3
        elif token["other"] or (unit := named_unit(token["name"])) is None:
            return None
        else:
            power: int = sign * factor * int(token["power"] or 1)
            size *= Fraction(unit.size**power)
            for base, exponent in unit.powers:
                powers[base] = powers.get(base, 0) + power * exponent
            factor = 1
    powers = {base: power for base, power in powers.items() if power}
    return Unit(size, frozenset(powers.items())) if powers else None


def named_unit(name: str) -> Unit | None:
    """Return the unit of a symbol or a word."""
    if name in SYMBOLS:
        return unit_of(SYMBOLS[name])
    word = name.lower()
    for form in (word, word.removesuffix("s"), word.removesuffix("es")):
        if form in WORDS:
            return unit_of(WORDS[form])
        for prefix, short in LONG_PREFIXES.items():
            if form.startswith(prefix) and form.removeprefix(prefix) in LONG:
                return named_unit(short + LONG[form.removeprefix(prefix)])
    if name[:1] in PREFIXES and name[1:] in SYMBOLS:
        size, powers = SYMBOLS[name[1:]]
        return unit_of((size * Fraction(10) ** PREFIXES[name[:1]], powers))
    return None


def unit_of(entry: Entry) -> Unit:
    """Return a unit of the tables."""
    parts = [part.partition("^") for part in entry[1].split()]
    return Unit(Fraction(entry[0]), frozenset((base, int(power or 1)) for base, _, power in parts))
