"""Grade completions, for rewards and for evaluation alike.

`extraction.py` finds the answer, `answers.py` compares it with the gold answer, by the rules of `rules.py`. A plain number is
compared in the caller's process, without a parser. Every other comparison runs in the process of `sandbox.py`, so that no
completion can hang, kill or harm the caller. A gold answer made by `tasks.write_gold` is graded there by the task's own score.
Verdicts are cached by answer, gold answer and rules.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rlvr_sweeps.grading.answers import AnswerReason, is_plain_number, judge, needs_parser
from rlvr_sweeps.grading.extraction import MissingReason, Policy, extract
from rlvr_sweeps.grading.latex import MAX_LENGTH
from rlvr_sweeps.grading.numbers import INTEGER, canonical_integer
from rlvr_sweeps.grading.reward_pool import Failure
from rlvr_sweeps.grading.rules import DEFAULT_RULES, Rules
from rlvr_sweeps.grading.sandbox import UNFINISHED, Pair, verdicts
from rlvr_sweeps.grading.tasks import is_task_gold, require_package

VERSION = 4  # raise it with every change that can change a verdict; summaries of two versions are not compared
Reason = AnswerReason | MissingReason | Failure | Literal["partly correct"]
CACHE_SIZE = 100_000  # verdicts by each set of rules

_caches: dict[Rules, OrderedDict[Pair, AnswerReason]] = {}


@dataclass(frozen=True)
class Verdict:
    """The result of grading one completion."""

    correct: bool
    answer: str | None  # as it stands in the completion; None where there is none
    reason: Reason
    score: float | None = None  # of a verifier that is not the grader alone; None: 1 for a correct answer, else 0

    @property
    def reward(self) -> float:
        """The score of the completion."""
        return float(self.correct) if self.score is None else self.score


def grade(completion: str, gold: str, policy: Policy = "boxed_after_thinking", rules: Rules = DEFAULT_RULES) -> Verdict:
    """Grade one completion against `gold`, a LaTeX expression without a box around it."""
    return grade_all([completion], [gold], policy, rules)[0]


def grade_all(
    completions: Sequence[str],
    golds: Sequence[str],
    policy: Policy = "boxed_after_thinking",
    rules: Rules = DEFAULT_RULES,
) -> list[Verdict]:
    """Grade each completion against its gold answer. Equal pairs are compared once; several workers compare in parallel."""
    extracted = [extract(completion, policy, rules.boxes) for completion in completions]
    pairs = [
        None if answer is None else (answer.strip(), gold.strip()) for (answer, _), gold in zip(extracted, golds, strict=True)
    ]
    reasons = compare_all(dict.fromkeys(pair for pair in pairs if pair is not None), rules)
    return [
        Verdict(False, answer, missing or "no answer") if pair is None
        else Verdict(reasons[pair] == "correct", answer, reasons[pair])
        for (answer, missing), pair in zip(extracted, pairs, strict=True)
    ]  # fmt: skip


def compare_all(pairs: Iterable[Pair], rules: Rules = DEFAULT_RULES) -> dict[Pair, AnswerReason]:
    """Return the reason for each (answer, gold): from the cache, from a comparison in this process, or from the sandbox."""
    cache = _caches.setdefault(rules, OrderedDict())
    reasons = {pair: cache[pair] if pair in cache else compare_without_parser(*pair, rules) for pair in pairs}
    hard = [pair for pair, reason in reasons.items() if reason is None]
    require_package(gold for _, gold in hard)
    reasons.update(zip(hard, verdicts(hard, rules), strict=True))
    complete = {pair: reason for pair, reason in reasons.items() if reason is not None}
    cache.update({pair: reason for pair, reason in complete.items() if reason not in UNFINISHED})
    while len(cache) > CACHE_SIZE:
        cache.popitem(last=False)
    return complete


def compare_without_parser(answer: str, gold: str, rules: Rules = DEFAULT_RULES) -> AnswerReason | None:
    """Return the reason where the comparison needs no parser, else None."""
    if is_task_gold(gold):
        return "unparsable" if len(answer) > MAX_LENGTH else None
    if INTEGER.match(gold) and INTEGER.match(answer) and rules.tolerance != "qwen2_5_math":
        return "correct" if canonical_integer(answer) == canonical_integer(gold) else "wrong"
    if answer == gold and answer:
        return "correct"
    if len(answer) > MAX_LENGTH:
        return "unparsable"
    return judge(answer, gold, rules) if is_plain_number(gold) and not needs_parser(answer, rules) else None
