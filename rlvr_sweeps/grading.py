"""One answer check, for rewards and for evaluation.

Policy: the answer is the last \\boxed{} after the last </think>. A completion that never closes its thinking is wrong, and
so is one without a box. Mathematics is math-verify's; an integer gold answered by an integer needs no parser.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Reason = Literal["correct", "wrong", "unfinished thinking", "no box", "unparsable"]
END_OF_THINKING = "</think>"
INTEGER = re.compile(r"[+-]?\d+\Z", re.ASCII)


@dataclass(frozen=True)
class Verdict:
    correct: bool
    answer: str | None  # what stood in the box
    reason: Reason


def grade(completion: str, gold: str) -> Verdict:
    """Whether `completion` answers `gold`, a LaTeX expression without a box around it."""
    if END_OF_THINKING not in completion:
        return Verdict(False, None, "unfinished thinking")
    answer = last_box(completion.rpartition(END_OF_THINKING)[2])
    if answer is None:
        return Verdict(False, None, "no box")
    reason = compare(answer.strip(), gold.strip())
    return Verdict(reason == "correct", answer, reason)


def last_box(text: str) -> str | None:
    """The content of the last complete \\boxed{…}, braces balanced; None where there is none."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth = 0
        for position in range(start + len("\\boxed"), len(text)):
            character = text[position]
            depth += (character == "{") - (character == "}")
            if depth == 0:
                return text[start + len("\\boxed{") : position]
        start = text.rfind("\\boxed{", 0, start)
    return None


@lru_cache(maxsize=100_000)
def compare(answer: str, gold: str) -> Reason:
    """`correct`, `wrong` or `unparsable`, of one answer against one gold."""
    if INTEGER.match(gold) and INTEGER.match(answer):
        return "correct" if canonical(answer) == canonical(gold) else "wrong"
    from math_verify import parse, verify

    asked, given = parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{answer}}}")
    if not given:
        return "unparsable"
    return "correct" if verify(asked, given) else "wrong"


def canonical(integer: str) -> str:
    """Sign and leading zeros dropped; as text, so that a million digits cost nothing."""
    sign = "-" if integer.startswith("-") else ""
    digits = integer.lstrip("+-").lstrip("0") or "0"
    return digits if digits == "0" else sign + digits
