"""Test that units are read in words and in symbols, and that an unknown word is no unit."""

from fractions import Fraction

import pytest

from rlvr_sweeps.grading.latex import tidy
from rlvr_sweeps.grading.units import PREFIXES, SYMBOLS, WORDS, named_unit, read_unit


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\text{ km/h}", r"\frac{\text{km}}{\text{h}}"),
        (r"\text{ kilometers per hour}", r"\text{kph}"),
        (r"\text{ m s}^{-2}", r"\text{m/s}^2"),
        (r"\text{J}", r"\text{kg}\cdot\text{m}^2/\text{s}^2"),
        (r"\text{ cubic centimeters}", r"\text{cm}^3"),
        (r"\text{ mL}", r"\text{ cm}^3"),
        (r"\mu\text{s}", r"\text{us}"),
        (r"\text{ k}\Omega", r"\text{ kiloohms}"),
        (r"\text{ lbs}", r"\text{ pounds}"),
    ],
)
def test_two_spellings_of_a_unit(one, other):
    assert read_unit(tidy(one)) == read_unit(tidy(other)) is not None


@pytest.mark.parametrize(
    "text", ["", r"\text{ apples}", r"\text{ ways}", r"\text{ cm apples}", "%", r"\text{ units}", r"\text{ cans}"]
)
def test_unknown_words_are_no_unit(text):
    assert read_unit(tidy(text)) is None


def test_sizes():
    kilometre, mile, electronvolt = named_unit("km"), named_unit("miles"), named_unit("keV")
    assert (kilometre.size, mile.size) == (1000, Fraction(1609344, 1000))
    assert electronvolt.size == Fraction(1602176634, 10**25)
    assert electronvolt.powers == named_unit("J").powers


def test_no_symbol_with_a_prefix_is_another_unit():
    names = [*SYMBOLS, *WORDS]
    prefixed = {prefix + symbol for prefix in PREFIXES for symbol in SYMBOLS}
    assert {name for name in names if name in prefixed} <= {"m"}
