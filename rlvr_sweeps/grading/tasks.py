"""Grade answers to tasks of reasoning-gym by the task's own `score_answer`, where equality of value is not the criterion.

Such a problem's gold answer is one text: `reasoning_gym:TASK` and a JSON object with the task's parameters and the entry that
`score_answer` reads. It is in the training rows and in the stored samples, so that a reward, an evaluation and `rlvr regrade`
have the same verdict. `score` runs in a worker of `sandbox.py`, never in the caller.
"""

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Literal

from rlvr_sweeps.grading.latex import tidy

PREFIX = "reasoning_gym:"  # of such a gold answer, and of the path of a problem source
FRACTION = re.compile(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
CORRECT_SCORE = 1.0  # of reasoning-gym's partial scores, only the full one counts as correct


def write_gold(task: str, parameters: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Return the gold answer of a problem that `score_answer` grades; the entry without its question.

    Raise TypeError or ValueError where the entry cannot be written as JSON.
    """
    stored = {key: value for key, value in entry.items() if key != "question"}
    return f"{PREFIX}{task} {json.dumps(stored | {'parameters': dict(parameters)})}"


def is_task_gold(gold: str) -> bool:
    """Return whether `score_answer` of a task decides instead of the project's comparison."""
    return gold.startswith(PREFIX)


def read_gold(gold: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return (task, parameters, entry) of a gold answer made by `write_gold`."""
    task, _, text = gold.removeprefix(PREFIX).partition(" ")
    entry = json.loads(text)
    return task, entry.pop("parameters"), entry


def require_package(golds: Iterable[str]) -> None:
    """Raise RuntimeError where a gold answer needs reasoning-gym and it is not installed."""
    if importlib.util.find_spec("reasoning_gym") is None and any(is_task_gold(gold) for gold in golds):
        raise RuntimeError(
            "These answers are graded by reasoning-gym, which is not installed. Install it: pip install '.[smollm2]'."
        )


def scorer(task: str, parameters: Mapping[str, Any]) -> Callable[..., float]:
    """Return the task's `score_answer`; the first call imports reasoning-gym, and some tasks read files."""
    return cached_scorer(task, json.dumps(dict(parameters), sort_keys=True))


@cache
def cached_scorer(task: str, parameters: str) -> Callable[..., float]:
    """Return the `score_answer` of a task with the parameters in JSON."""
    import reasoning_gym

    return reasoning_gym.create_dataset(task, **json.loads(parameters)).score_answer


def score(answer: str, gold: str) -> Literal["correct", "wrong"]:
    """Grade an answer by the task's own score: correct where one of its spellings has the full score."""
    return "correct" if any(value >= CORRECT_SCORE for value in score_values(answer, gold)) else "wrong"


def score_values(answer: str, gold: str) -> Iterator[float]:
    """Yield the task's own score of an answer: a LaTeX fraction as a/b, other answers as they stand and without their LaTeX.

    A task that reads LaTeX fractions may ignore what follows them, and would accept \\frac{3}{4}+1 for 3/4.
    """
    task, parameters, entry = read_gold(gold)
    score_answer = scorer(task, parameters)
    plain = without_latex(answer)
    spellings = (plain,) if "\\frac" in tidy(answer) else dict.fromkeys((answer, plain))
    return (float(score_answer(text, entry)) for text in spellings)


def without_latex(answer: str) -> str:
    """Return an answer in the plain text that the tasks read: `\\dfrac{3}{4}` as 3/4, `\\text{left}` as left."""
    return TEXT.sub(r"\1", FRACTION.sub(r"\1/\2", tidy(answer))).strip()
