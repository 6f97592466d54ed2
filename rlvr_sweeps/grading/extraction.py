"""Extract the answer from a completion by one of the three policies of `grading=`."""

import re
from typing import Literal, get_args

from rlvr_sweeps.grading.rules import DEFAULT_RULES, Boxes

Policy = Literal["boxed_after_thinking", "boxed", "any"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
MissingReason = Literal["unfinished thinking", "no box", "no answer"]
END_OF_THINKING = "</think>"
IN_DOLLARS = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
BRACES = re.compile(r"\\boxed\s*\{|[{}]")
TAIL_CHARACTERS = 2000  # characters at the end of a completion in which `any` looks for an answer without a box
NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?")


def extract(
    completion: str, policy: Policy = "boxed_after_thinking", boxes: Boxes = DEFAULT_RULES.boxes
) -> tuple[str | None, MissingReason | None]:
    """Return (answer, None), or (None, the reason why there is no answer).

    boxed_after_thinking: the \\boxed{} after the last </think>; without </think> there is no answer.
    boxed: the \\boxed{} anywhere.
    any: no format is required; the box, else the last formula in math delimiters, else the last number.
    `boxes`: which of several boxes counts.
    """
    if policy == "boxed_after_thinking":
        if END_OF_THINKING not in completion:
            return None, "unfinished thinking"
        completion = completion.rpartition(END_OF_THINKING)[2]
    answer = boxed_answer(completion, boxes)
    if answer is not None or policy != "any":
        return answer, None if answer is not None else "no box"
    completion = completion.rpartition(END_OF_THINKING)[2][-TAIL_CHARACTERS:]
    formulas = [next(part for part in match if part) for match in IN_DOLLARS.findall(completion)]
    numbers = NUMBER.findall(completion) if not formulas else []
    answer = next(iter(reversed(formulas or numbers)), None)
    return answer, None if answer is not None else "no answer"


def boxed_answer(text: str, boxes: Boxes) -> str | None:
    """Return the content of the last or the first complete \\boxed{…}, or the different contents of all; None without one.

    Braces are balanced. Of a box in a box, the inner one is the last, the outer one is the first, and `all` has the outer one.
    """
    spans, open_braces = [], []  # (start, end) of the contents; (start, whether it opens a box) of each open brace
    for brace in BRACES.finditer(text):
        if brace.group() != "}":
            open_braces.append((brace.end(), brace.group() != "{"))
        elif open_braces:
            start, is_box = open_braces.pop()
            if is_box:
                spans.append((start, brace.start()))
    if not spans:
        return None
    if boxes != "all":
        start, end = max(spans) if boxes == "last" else min(spans)
        return text[start:end]
    contents, position = [], 0
    for start, end in sorted(spans):
        if start >= position:
            contents.append(text[start:end].strip())
            position = end
    return ", ".join(dict.fromkeys(contents))
