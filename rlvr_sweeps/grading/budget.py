"""The CPU time that one batch of comparisons may use, so that a policy that writes hostile answers cannot stop a training.

A comparison that ends at its first attempt costs nothing here. Those that do not end share BATCH_S: the first of them have
CPU_S each, later ones SHORT_S. Where SHAPE_LIMIT answers of one shape did not end and none did, the other answers of the shape
are refused at once. So is every answer once BATCH_S is used up. The reason of these verdicts is `over budget`, and they are
not cached.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

CPU_S = 1.0  # of one comparison; the slowest answer of tests/grading/answers.jsonl that is not hostile takes a third of it
SHORT_S = 0.05  # of one comparison, once FULL_S is used up
FULL_S = 20.0  # CPU time of comparisons that did not end, before the others have SHORT_S each
BATCH_S = 90.0  # CPU time of comparisons that did not end, before the others are refused
SHAPE_LIMIT = 3
NUMBER = re.compile(r"\d+")
NAME = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
REPEATED = re.compile(r"(.{1,8}?)\1+", re.DOTALL)


@dataclass
class Budget:
    """What the comparisons of one batch that did not end have used, and which shapes of answers they had."""

    used_s: float = 0.0
    unfinished: Counter[str] = field(default_factory=Counter)
    finished: set[str] = field(default_factory=set)

    def limit_s(self, answer: str) -> float:
        """Return the CPU seconds that the comparison of an answer may take; 0 where it is refused."""
        if self.used_s >= BATCH_S:
            return 0.0
        if self.unfinished and self.unfinished[form := shape(answer)] >= SHAPE_LIMIT and form not in self.finished:
            return 0.0
        return CPU_S if self.used_s < FULL_S else SHORT_S

    def record(self, answer: str, ended: bool, limit_s: float) -> None:
        """Record whether the comparison of an answer ended within its limit."""
        if ended:
            self.finished.add(shape(answer))
        else:
            self.used_s += limit_s
            self.unfinished[shape(answer)] += 1


def shape(answer: str) -> str:
    """Return what answers of one kind have in common: every number as 0, every single letter as x, repetitions once."""
    return REPEATED.sub(r"\1", NAME.sub("x", NUMBER.sub("0", answer)))
