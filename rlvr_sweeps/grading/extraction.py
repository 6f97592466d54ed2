"""Where in a completion the answer stands: the three policies of `grading=`."""

import re
from typing import Literal, get_args

Policy = Literal["boxed_after_thinking", "boxed", "any"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
Missing = Literal["unfinished thinking", "no box", "no answer"]
END_OF_THINKING = "</think>"
IN_DOLLARS = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
BRACES = re.compile(r"\\boxed\s*\{|[{}]")
TAIL = 2000  # characters at the end of a completion in which `any` looks for an answer without a box
LAST_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?")


def extract(completion: str, policy: Policy = "boxed_after_thinking") -> tuple[str | None, Missing | None]:
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
