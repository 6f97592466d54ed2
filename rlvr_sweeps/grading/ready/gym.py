"""The reward of a task of reasoning-gym: the task's own `score_answer`, with partial credit."""

from collections.abc import Sequence
from typing import Any

import reasoning_gym  # noqa: F401  # loaded before the limits of a call begin

from rlvr_sweeps.grading.extraction import extract
from rlvr_sweeps.grading.tasks import score_values


def reward(completions: Sequence[Any], entry: Sequence[str], grading: str) -> list[float]:
    """Return the task's score, in [0, 1], of the answer that `grading` finds in each completion; 0.0 without an answer.

    entry: the gold answer made by `tasks.write_gold`, which problems of reasoning-gym have as a column.
    """
    scores = []
    for completion, gold in zip(completions, entry, strict=True):
        answer, _ = extract(completion[0]["content"], grading)  # type: ignore[arg-type]
        scores.append(0.0 if answer is None else max(score_values(answer.strip(), gold)))
    return scores
