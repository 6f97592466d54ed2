"""One answer check, for rewards and for evaluation.

Where the answer stands is this module's policy; whether it is the gold is `answers.py`'s. An integer gold answered by an
integer needs no parser, and any other plain number no mathematics; expressions go to a process of their own
(`judging.py`), so that no completion can hang, kill or harm the caller. Verdicts on answers are cached.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlvr_sweeps.grading.answers import Reason as AnswerReason
from rlvr_sweeps.grading.answers import judge, plain
from rlvr_sweeps.grading.extraction import Missing, Policy, extract
from rlvr_sweeps.grading.latex import LONGEST
from rlvr_sweeps.grading.numbers import INTEGER, canonical
from rlvr_sweeps.grading.sandbox import verdicts

VERSION = 2  # of the verdicts: raise it with every change that can change one; summaries of two versions are not compared
Reason = AnswerReason | Missing
KEPT = 100_000  # verdicts in the cache


@dataclass(frozen=True)
class Verdict:
    correct: bool
    answer: str | None  # what was found, as it stood there
    reason: Reason


def grade(completion: str, gold: str, policy: Policy = "boxed_after_thinking") -> Verdict:
    """Whether `completion` answers `gold`, a LaTeX expression without a box around it."""
    return grade_all([completion], [gold], policy)[0]


def grade_all(completions: Sequence[str], golds: Sequence[str], policy: Policy = "boxed_after_thinking") -> list[Verdict]:
    """`grade` of each pair; expressions are compared by several workers at once, equal pairs once."""
    found = [extract(completion, policy) for completion in completions]
    pairs = [None if answer is None else (answer.strip(), gold.strip()) for (answer, _), gold in zip(found, golds, strict=True)]
    reasons = compare_all(dict.fromkeys(pair for pair in pairs if pair is not None))
    return [
        Verdict(False, answer, missing or "no answer") if pair is None
        else Verdict(reasons[pair] == "correct", answer, reasons[pair])
        for (answer, missing), pair in zip(found, pairs, strict=True)
    ]  # fmt: skip


_known: OrderedDict[tuple[str, str], AnswerReason] = OrderedDict()


def compare_all(pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], AnswerReason]:
    """The reason of each (answer, gold), from the cache, here, or from the judge."""
    reasons = {pair: _known[pair] if pair in _known else easy(*pair) for pair in pairs}
    hard = [pair for pair, reason in reasons.items() if reason is None]
    reasons.update(zip(hard, verdicts(hard), strict=True))
    known = {pair: reason for pair, reason in reasons.items() if reason is not None}
    _known.update({pair: reason for pair, reason in known.items() if reason != "timeout"})  # another time it may end
    while len(_known) > KEPT:
        _known.popitem(last=False)
    return known


def easy(answer: str, gold: str) -> AnswerReason | None:
    """The verdict where no parser is needed; None where one is."""
    if INTEGER.match(gold) and INTEGER.match(answer):
        return "correct" if canonical(answer) == canonical(gold) else "wrong"
    if answer == gold and answer:
        return "correct"
    if len(answer) > LONGEST:
        return "unparsable"
    return judge(answer, gold) if plain(gold) else None
