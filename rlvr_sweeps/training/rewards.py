"""The reward functions of training: the verifier, and DAPO's overlong punishment where the objective has a buffer for it."""

from collections.abc import Mapping
from typing import Any

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.verifiers import verdicts_of
from rlvr_sweeps.grading.grader import Verdict
from rlvr_sweeps.grading.verifiers import Answered
from rlvr_sweeps.training.dynamic_sampling import overlong_punishment


class VerifierReward:
    """The reward of the run's verifier; for `verifier=math` the paper's: 1 for a correct answer in the required form, else 0.

    `verdicts` are those of the last call.
    """

    __name__ = "accuracy"  # TRL reads a reward function's name

    def __init__(self, cfg: Resolved) -> None:
        self.cfg = cfg
        self.verdicts: list[Verdict] = []

    def __call__(
        self, completions: list[Any], gold: list[str], columns: list[Mapping[str, Any]] | None = None, **_: Any
    ) -> list[float]:
        """Return the reward of each completion, a conversation of one message; `columns` are what reward functions read."""
        answered = [
            Answered(completion[0]["content"], answer, row)
            for completion, answer, row in zip(completions, gold, columns or [{}] * len(gold), strict=True)
        ]
        self.verdicts = verdicts_of(self.cfg, answered)
        return [verdict.reward for verdict in self.verdicts]


def rewards(cfg: Resolved) -> list[Any]:
    """Return the reward functions of a run; the first is its VerifierReward."""
    buffer = cfg["algo"]["overlong_buffer"]
    verifier = VerifierReward(cfg)
    return [verifier, overlong_punishment(cfg["rollout"]["max_tokens"], buffer)] if buffer else [verifier]
