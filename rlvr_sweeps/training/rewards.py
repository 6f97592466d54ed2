"""The reward functions of training: the verifier, and DAPO's overlong punishment where the objective has a buffer for it."""

from typing import Any

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import grading_of, rules_of
from rlvr_sweeps.grading.extraction import Policy
from rlvr_sweeps.grading.grader import Verdict, grade_all
from rlvr_sweeps.grading.rules import Rules
from rlvr_sweeps.training.dynamic_sampling import overlong_punishment


class Verifier:
    """The paper's reward: 1 for a correct answer in the required form, else 0. `verdicts` are those of the last call."""

    __name__ = "accuracy"  # TRL reads a reward function's name

    def __init__(self, grading: Policy, rules: Rules) -> None:
        self.grading, self.rules = grading, rules
        self.verdicts: list[Verdict] = []

    def __call__(self, completions: list[Any], gold: list[str], **_: Any) -> list[float]:
        """Return the reward of each completion, a conversation of one message."""
        self.verdicts = grade_all([completion[0]["content"] for completion in completions], gold, self.grading, self.rules)
        return [float(verdict.correct) for verdict in self.verdicts]


def rewards(cfg: Resolved) -> list[Any]:
    """Return the reward functions of a run; the first is its Verifier."""
    buffer = cfg["algo"]["overlong_buffer"]
    verifier = Verifier(grading_of(cfg), rules_of(cfg))
    return [verifier, overlong_punishment(cfg["rollout"]["max_tokens"], buffer)] if buffer else [verifier]
