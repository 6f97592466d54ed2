"""When has a training collapsed? A pure rule on the rows of metrics.jsonl."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def why_collapsed(rows: Sequence[Mapping[str, Any]], window: int, standard_errors: float, truncated_share: float) -> str | None:
    """Why to stop after the last of `rows`, which hold every step from the first on; None: go on.

    - its loss is no finite number: at once;
    - of the completions of the last `window` steps more than `truncated_share` were cut off;
    - the mean reward of each of the last two windows is more than `standard_errors` below that of the first window. The error
      is that of a difference of two means, √(s₁²/w + s²/w), with the steps' own variances.

    The last two are looked at where a window ends, at steps w, 2w, …, so that windows do not overlap. Two windows in a row,
    because each look is a test: see tests/test_early_stopping.py for how often a run that does not change is stopped.
    """
    if rows[-1]["loss"] is None:
        return "the loss is not a finite number"
    if len(rows) % window:
        return None
    cut_off = statistics.fmean(row["truncated_share"] for row in rows[-window:])
    if cut_off > truncated_share:
        return f"{cut_off:.0%} of the completions of the last {window} steps were cut off"
    if len(rows) < 3 * window:
        return None
    first, before, last = (
        [float(row["reward_mean"]) for row in part] for part in (rows[:window], rows[-2 * window : -window], rows[-window:])
    )
    if all(falls(first, later, standard_errors) for later in (before, last)):
        return (
            f"the reward of the last {2 * window} steps, {statistics.fmean(before + last):.3f}, is more than "
            f"{standard_errors:g} standard errors below that of the first {window}, {statistics.fmean(first):.3f}"
        )
    return None


def falls(first: Sequence[float], later: Sequence[float], standard_errors: float) -> bool:
    (start, start_error2), (now, now_error2) = mean_and_squared_error(first), mean_and_squared_error(later)
    return now < start - standard_errors * math.sqrt(start_error2 + now_error2)


def mean_and_squared_error(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)
