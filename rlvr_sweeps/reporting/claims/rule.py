"""The rule that decides a claim card from the differences of its contrasts and their intervals (docs/claims.md argues for it).

d is the difference left minus right, δ the card's smallest effect, and [low, high] the interval of d at the level 1 − α/m,
for m contrasts; differences of a card with `direction: less` are read with the opposite sign.

greater, less: supported if low > 0, the estimate is at least δ, and Holm's p is below α; refuted if high < δ.
equivalent: supported if −δ < low and high < δ; refuted if the interval excludes 0, the estimate is at least δ away from it, and
Holm's p is below α.
All other cases are undecided. A card is supported if all of its contrasts are, and refuted if one of them is.
"""

from collections.abc import Sequence
from enum import StrEnum
from statistics import NormalDist

from rlvr_sweeps.config.claims import Claim
from rlvr_sweeps.reporting.differences.bootstrap import Difference

POWER = 0.8


class Verdict(StrEnum):
    """What the runs say about a claim."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


def level(claim: Claim) -> float:
    """Return the level of each of the card's intervals: 1 − α/m, so that all of them hold together with probability 1 − α."""
    return 1 - claim.alpha / claim.intervals


def decide(claim: Claim, difference: Difference, p_holm: float) -> Verdict:
    """Return the verdict on one contrast, left minus right as accuracy, with its interval at `level(claim)`."""
    smallest = claim.smallest_effect / 100
    value, low, high = difference.value, difference.low, difference.high
    if claim.direction == "less":
        value, low, high = -value, -high, -low
    if claim.direction == "equivalent":
        if -smallest < low and high < smallest:
            return Verdict.SUPPORTED
        differs = (low > 0 or high < 0) and abs(value) >= smallest and p_holm < claim.alpha
        return Verdict.REFUTED if differs else Verdict.UNDECIDED
    if low > 0 and value >= smallest and p_holm < claim.alpha:
        return Verdict.SUPPORTED
    return Verdict.REFUTED if high < smallest else Verdict.UNDECIDED


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the card's verdict from those of its contrasts: supported if all are, refuted if one is, otherwise undecided."""
    if Verdict.REFUTED in verdicts:
        return Verdict.REFUTED
    return Verdict.SUPPORTED if verdicts and set(verdicts) == {Verdict.SUPPORTED} else Verdict.UNDECIDED


def detectable(claim: Claim, difference: Difference) -> float:
    """Return the smallest true difference, as accuracy, that these runs tell apart from none with 80 % probability.

    It is (z + z₀.₈) standard errors, with z the quantile that the half width of the interval consists of. For `equivalent` it
    is the narrowest margin within which equal rows would be shown to be equal: (z + z₀.₉) standard errors, since the interval
    must stay inside on both sides.
    """
    normal = NormalDist()
    z = normal.inv_cdf((1 + level(claim)) / 2)
    power = normal.inv_cdf((1 + POWER) / 2 if claim.direction == "equivalent" else POWER)
    return (difference.high - difference.low) / 2 * (z + power) / z
