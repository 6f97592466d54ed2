"""Judge completions by a run's verifier: the project's grader for mathematics, reward functions, or several with weights.

A reward function has the signature of TRL's GRPOTrainer, `reward(completions, **columns) -> list[float | None]`. The same
verifier decides on training rewards, in the evaluation and in `rlvr regrade`. Its score is a float: it is the reward, and an
answer is correct where the score is at least `correct_at`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlvr_sweeps.grading import reward_pool
from rlvr_sweeps.grading.extraction import TAIL_CHARACTERS, Policy, extract
from rlvr_sweeps.grading.grader import VERSION, Reason, Verdict, grade_all
from rlvr_sweeps.grading.ready import choice
from rlvr_sweeps.grading.reward_pool import Call, Outcome, RewardFunction, judge
from rlvr_sweeps.grading.rules import DEFAULT_RULES, Rules

MATH = "math"  # target of the project's grader
CHOICE = "rlvr_sweeps.grading.ready.choice:reward"
RESERVED = (
    "prompt",
    "prompts",
    "completion",
    "completions",
    "completion_ids",
)  # TRL's own arguments: no column has such a name
ROUNDING = 1e-9  # a sum of weighted scores counts as correct where it misses correct_at by no more


@dataclass(frozen=True)
class Part:
    """One verifier of a run; `arguments` are (name, value) pairs that each call gets unchanged."""

    name: str
    function: RewardFunction
    weight: float = 1.0
    columns: tuple[str, ...] | None = None  # the columns that it gets; None: all
    arguments: tuple[tuple[str, Any], ...] = ()
    text: bool = False  # completions as texts instead of conversations
    version: int | None = None  # of what is not in the file of the function

    @property
    def is_math(self) -> bool:
        """Whether the project's grader decides."""
        return self.function.target == MATH


@dataclass(frozen=True)
class Verifier:
    """The verifier of a run: its parts, the grading of the mathematical one, and the score from which an answer is correct."""

    parts: tuple[Part, ...] = (Part(MATH, RewardFunction(MATH)),)
    correct_at: float = 1.0
    policy: Policy = "boxed_after_thinking"
    rules: Rules = DEFAULT_RULES

    @property
    def is_math(self) -> bool:
        """Whether the project's grader alone decides, so that every score is 0 or 1 and no column is read."""
        return len(self.parts) == 1 and self.parts[0].is_math and self.parts[0].weight == 1.0

    def label(self) -> str:
        """Return the parts with the beginning of the SHA-256 of their sources: `0.5 my_reward.py:reward@1a2b3c4d5e6f`."""
        return " + ".join(
            ("" if part.weight == 1.0 else f"{part.weight:g} ")
            + (f"{MATH} version {VERSION}" if part.is_math else part.function.target)
            + (f"@{part.function.source[:12]}" if part.function.source else "")
            + (f" version {part.version}" if part.version is not None else "")
            for part in self.parts
        )


@dataclass(frozen=True)
class Answered:
    """A completion with its problem: the gold answer, and the columns that reward functions read."""

    text: str
    gold: str
    columns: Mapping[str, Any] = field(default_factory=dict)  # `prompt` is the conversation


def verdicts(verifier: Verifier, completions: Sequence[Answered]) -> list[Verdict]:
    """Return the verdict on each completion. Raise VerifierError for a reward function that cannot be used."""
    if verifier.is_math:
        return math_verdicts(verifier, completions)
    by_part = [
        math_verdicts(verifier, completions) if part.is_math else judge(part.function, calls(verifier, part, completions))
        for part in verifier.parts
    ]
    return [joined(verifier, completion, results) for completion, *results in zip(completions, *by_part, strict=True)]


def check(verifier: Verifier, completion: Answered) -> None:
    """Raise VerifierError where a reward function cannot be loaded, or reads a column that a problem lacks; judge nothing."""
    for part in verifier.parts:
        if not part.is_math:
            reward_pool.check(part.function, calls(verifier, part, [completion])[0])


def math_verdicts(verifier: Verifier, completions: Sequence[Answered]) -> list[Verdict]:
    """Return the verdicts of the project's grader."""
    texts, golds = [completion.text for completion in completions], [completion.gold for completion in completions]
    return grade_all(texts, golds, verifier.policy, verifier.rules)


def calls(verifier: Verifier, part: Part, completions: Sequence[Answered]) -> list[Call]:
    """Return what a reward function gets for each completion: TRL's arguments, and `grading`, the run's policy."""
    constants = {"grading": verifier.policy, **dict(part.arguments)}
    return [
        Call(
            completion.text if part.text else [{"role": "assistant", "content": completion.text}],
            {
                "prompts": completion.columns.get("prompt"),
                **{
                    name: value
                    for name, value in completion.columns.items()
                    if name not in RESERVED and (part.columns is None or name in part.columns)
                },
            },
            constants,
        )
        for completion in completions
    ]


def joined(verifier: Verifier, completion: Answered, results: Sequence[Verdict | Outcome]) -> Verdict:
    """Return the verdict on a completion from the results of the parts: the sum of the weighted scores, as TRL adds rewards.

    A part without a score adds nothing, and its reason is the verdict's where the answer is not correct.
    """
    score, reasons, scored = 0.0, list[Reason](), False
    for part, result in zip(verifier.parts, results, strict=True):
        value = result.reward if isinstance(result, Verdict) else result.score
        score, scored = score + part.weight * (value or 0.0), scored or value is not None
        reason = result.reason if isinstance(result, Verdict) else result.failure
        if reason is not None and reason != "correct":
            reasons.append(reason)
    if scored:
        reasons = [reason for reason in reasons if reason != "no score"]
    correct = scored and score >= verifier.correct_at - ROUNDING
    wrong: Reason = reasons[0] if reasons else "partly correct" if score > 0 else "wrong"
    return Verdict(correct, read_answer(verifier, completion.text), "correct" if correct else wrong, score)


def read_answer(verifier: Verifier, text: str) -> str | None:
    """Return what stands for a completion in tables and majority votes: the letter of a choice, else box, formula or number.

    Where there is none it is the last line that is not empty.
    """
    if any(part.function.target == CHOICE for part in verifier.parts):
        return choice.read_letter(text, verifier.policy)
    answer = extract(text, verifier.policy, verifier.rules.boxes)[0] or extract(text, "any", verifier.rules.boxes)[0]
    lines = [line.strip() for line in text[-TAIL_CHARACTERS:].splitlines() if line.strip()]
    return answer or (lines[-1] if lines else None)
