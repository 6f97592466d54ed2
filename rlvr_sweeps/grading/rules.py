"""The rules on which graders differ, each with its default: `answers.*` in a run's configuration.

conf/answers/ has named sets of them; docs/reproducing.md states for each rule what other graders do, and why the default is so.
"""

from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Literal, get_args, get_type_hints

from rlvr_sweeps.grading.numbers import Number

Boxes = Literal["last", "first", "all"]
Arithmetic = Literal["refuse", "accept"]
Percent = Literal["either", "strict", "unsigned"]
Tolerance = Literal["exact", "one_percent", "qwen2_5_math"]
Vectors = Literal["either", "strict"]


@dataclass(frozen=True)
class Rules:
    """What counts as the right answer where graders differ.

    boxes: which of several boxes is the answer; `all`: the list of their contents.
    arithmetic: whether an expression that must be computed, such as 2^{10}, answers a problem whose gold answer is a number.
    percent: `either`: 28% equals 0.28 and 28; `strict`: only 0.28; `unsigned`: 0.28 and 28 are equal without a sign as well.
    tolerance: `exact`: none, except that a decimal of six digits may be rounded; `one_percent`: 1 % of a gold answer that is a
        decimal or has a power of ten; `qwen2_5_math`: a relative 1e-4 of any gold answer that has a value.
    vectors: `either`: a row or column of a matrix equals a tuple of the same elements; `strict`: it does not.
    """

    boxes: Boxes = "last"
    arithmetic: Arithmetic = "refuse"
    percent: Percent = "either"
    tolerance: Tolerance = "exact"
    vectors: Vectors = "either"

    def equal_numbers(self, answer: Number, gold: Number) -> bool:
        """Return whether a literal number answers a gold answer that is one; a missing unit is the gold answer's."""
        converted = answer.in_unit(gold.unit) if gold.unit else answer
        return converted is not None and any(
            reading.is_close(gold) or self.is_within_tolerance(reading.value, gold.value, gold.rounded)
            for reading in self.readings(converted, gold)
        )

    def readings(self, answer: Number, gold: Number) -> list[Number]:
        """Return the numbers that an answer may mean: itself, and its multiple by 100 where a percent sign may be missing."""
        if self.percent == "strict" or (self.percent == "either" and answer.percent == gold.percent):
            return [answer]
        shifts = (-2, 2) if self.percent == "unsigned" else (2,) if gold.percent else (-2,)
        return [answer, *(answer.divided(shift) for shift in shifts)]

    def is_within_tolerance(self, answer: Fraction, gold: Fraction, rounded: bool) -> bool:
        """Return whether two values differ by no more than the tolerance; `rounded`: see Number."""
        if self.tolerance == "exact" or (self.tolerance == "one_percent" and not rounded):
            return False
        if self.tolerance == "one_percent":
            return abs(answer - gold) <= abs(gold) / 100
        return abs(answer - gold) <= max(abs(answer), abs(gold)) / 10_000


DEFAULT_RULES = Rules()
CHOICES: dict[str, tuple[str, ...]] = {field.name: get_args(get_type_hints(Rules)[field.name]) for field in fields(Rules)}
