"""Extract the answer from a completion by one of the three policies of `grading=`."""

import re
from typing import Literal, get_args

Policy = Literal["boxed_after_thinking", "boxed", "any"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
MissingReason = Literal["unfinished thinking", "no box", "no answer"]
END_OF_THINKING = "</think>"
IN_DOLLARS = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
BRACES = re.compile(r"\\boxed\s*\{|[{}]")
TAIL_CHARACTERS = 2000  # characters at the end of a completion in which `any` looks for an answer without a box
NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?")


def extract(completion: str, policy: Policy = "boxed_after_thinking") -> tuple[str | None, MissingReason | None]:
    """Return (answer, None), or (None, the reason why there is no answer).

    boxed_after_thinking: the last \\boxed{} after the last </think>; without </think> there is no answer.
    boxed: the last \\boxed{} anywhere.
    any: no format is required; the last box, else the last formula in math delimiters, else the last number.
    """
    if policy == "boxed_after_thinking":
        if END_OF_THINKING not in completion:
            return None, "unfinished thinking"
        completion = completion.rpartition(END_OF_THINKING)[2]
    answer = last_box(completion)
    if answer is not None or policy != "any":
        return answer, None if answer is not None else "no box"
    completion = completion.rpartition(END_OF_THINKING)[2][-TAIL_CHARACTERS:]
    formulas = [next(part for part in match if part) for match in IN_DOLLARS.findall(completion)]
    numbers = NUMBER.findall(completion) if not formulas else []
    answer = next(iter(reversed(formulas or numbers)), None)
    return answer, None if answer is not None else "no answer"


def last_box(text: str) -> str | None:
    """Return the content of the last complete \\boxed{…}, braces balanced; None where there is none. Linear in the length."""
    last, open_braces = (-1, -1), []  # (start, end) of the content; (start, whether it opens a box) of each open brace
    for brace in BRACES.finditer(text):
        if brace.group() != "}":
            open_braces.append((brace.end(), brace.group() != "{"))
        elif open_braces:
            start, is_box = open_braces.pop()
            if is_box and start > last[0]:
                last = (start, brace.start())
    return text[slice(*last)] if last[0] >= 0 else None
