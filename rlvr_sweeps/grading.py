"""One answer check, for rewards and for evaluation.

Where the answer stands is this module's policy; whether it is the gold is `answers.py`'s. An integer gold answered by an
integer needs no parser, and any other plain number no mathematics; expressions go to a process of their own
(`judging.py`), so that no completion can hang, kill or harm the caller. Verdicts on answers are cached.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rlvr_sweeps.answers import Reason as AnswerReason
from rlvr_sweeps.answers import judge, plain
from rlvr_sweeps.judging import verdicts
from rlvr_sweeps.literals import INTEGER, canonical
from rlvr_sweeps.spelling import LONGEST

VERSION = 2  # of the verdicts: raise it with every change that can change one; summaries of two versions are not compared
Policy = Literal["boxed_after_thinking", "boxed", "any"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
Reason = AnswerReason | Literal["unfinished thinking", "no box", "no answer"]
END_OF_THINKING = "</think>"
KEPT = 100_000  # verdicts in the cache
IN_DOLLARS = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
BRACES = re.compile(r"\\boxed\s*\{|[{}]")
TAIL = 2000  # characters at the end of a completion in which `any` looks for an answer without a box
LAST_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?")


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


def extract(completion: str, policy: Policy = "boxed_after_thinking") -> tuple[str | None, Reason | None]:
    """(answer, None), or (None, why there is none).

    boxed_after_thinking: the last \\boxed{} after the last </think>; thinking that never ends is no answer.
    boxed: the last \\boxed{} anywhere.
    any: no format is demanded; the last box, else the last formula in dollar signs, else the last number.
    """
    if policy == "boxed_after_thinking":
        if END_OF_THINKING not in completion:
            return None, "unfinished thinking"
        completion = completion.rpartition(END_OF_THINKING)[2]
    answer = last_box(completion)
    if answer is not None or policy != "any":
        return answer, None if answer is not None else "no box"
    completion = completion.rpartition(END_OF_THINKING)[2][-TAIL:]
    formulas = [next(part for part in found if part) for found in IN_DOLLARS.findall(completion)]
    numbers = LAST_NUMBER.findall(completion) if not formulas else []
    answer = next(iter(reversed(formulas or numbers)), None)
    return answer, None if answer is not None else "no answer"


def last_box(text: str) -> str | None:
    """The content of the last complete \\boxed{…}, braces balanced; None where there is none. One pass, whatever the text."""
    last, opened = (-1, -1), []  # (start, end) of the content; starts of open braces, and whether a box opened there
    for brace in BRACES.finditer(text):
        if brace.group() != "}":
            opened.append((brace.end(), brace.group() != "{"))
        elif opened:
            start, is_box = opened.pop()
            if is_box and start > last[0]:
                last = (start, brace.start())
    return text[slice(*last)] if last[0] >= 0 else None


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
