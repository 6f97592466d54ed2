"""The reward for multiple choice: 1 where the chosen letter is the right one, else 0."""

import re
from collections.abc import Sequence
from typing import Any

from rlvr_sweeps.grading.extraction import END_OF_THINKING, TAIL_CHARACTERS, boxed_answer
from rlvr_sweeps.grading.rules import DEFAULT_RULES

# B, (B), B., \text{B}, B. Paris
LETTER = re.compile(
    r"\s*(?:\\text\w*\s*\{\s*)?\(?\s*([A-Za-z])\s*[).:]?\s*\}?(?:[\s.].*)?", re.DOTALL
)  # B, (B), B., \text{B}, B. Paris
STATED = re.compile(
    r"\b(?:answer|option|choice)\b(?:\s+(?:is|would be))?\s*[:=]?\s*\**\s*\(?([A-Z])\b(?!['’])\)?", re.IGNORECASE
)
ALONE = re.compile(r"(?:^|[\s(*])([A-Z])(?=[).:*\s]|$)")


def reward(
    completions: Sequence[Any], answer: Sequence[Any], grading: str, choices: Sequence[Any] | None = None
) -> list[float]:
    """Return 1.0 for each completion that chooses the gold letter, else 0.0.

    answer: the gold letter; or the index of the right option, from 0, where there is a column `choices`, the list of options.
    """
    return [
        float(read_letter(completion[0]["content"], grading) == gold_letter(gold, None if choices is None else choices[index]))
        for index, (completion, gold) in enumerate(zip(completions, answer, strict=True))
    ]


def gold_letter(gold: Any, choices: Sequence[Any] | None) -> str:
    """Return the gold answer as a capital letter. Raise ValueError where it is none."""
    text = str(gold).strip()
    if choices is not None and text.isdecimal() and int(text) < len(choices):
        return chr(ord("A") + int(text))
    if not (match := LETTER.fullmatch(text)):
        raise ValueError(f"the gold answer {text[:80]!r} is no letter, and no index of an option in a column `choices`")
    return match.group(1).upper()


def read_letter(text: str, grading: str) -> str | None:
    """Return the letter that a completion chooses, as a capital letter, by the policy `grading`; None without one.

    boxed_after_thinking and boxed: in the last box. any: in the last box, else after the last "answer is", else the last
    capital letter that stands alone.
    """
    if grading == "boxed_after_thinking" and END_OF_THINKING not in text:
        return None
    text = text.rpartition(END_OF_THINKING)[2] if grading != "boxed" else text
    box = boxed_answer(text, DEFAULT_RULES.boxes)
    if box is not None or grading != "any":
        match = LETTER.fullmatch(box or "")
        return match.group(1).upper() if match else None
    text = text[-TAIL_CHARACTERS:].strip()
    if len(text) <= 4 and (match := LETTER.fullmatch(text)):
        return match.group(1).upper()
    letters = STATED.findall(text) or ALONE.findall(text)
    return letters[-1].upper() if letters else None
