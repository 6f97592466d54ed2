"""`rlvr verify`: try a run's verifier on gold answers and on corrupted ones, before a model is trained with it.

A verifier should accept every gold answer, written as a completion, and refuse it once it is changed in one place. The form of
a completion is the first of FORMS in which it accepts most gold answers, or the one that the caller gives.
"""

import json
import random
import re
import string
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlvr_sweeps.assets.problems import Problem, load_problems, messages
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.verifiers import verdicts_of, verifier_of
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import Row
from rlvr_sweeps.grading.grader import Verdict
from rlvr_sweeps.grading.tasks import is_task_gold, read_gold
from rlvr_sweeps.grading.verifiers import Answered

FORMS = (  # of a completion that gives the right answer
    "<think>\n</think>\n\\boxed{{answer}}", "\\boxed{{answer}}", "{answer}", "<answer>{answer}</answer>", "#### {answer}",
    "The answer is {answer}.", "<think>\n</think>\n<answer>{answer}</answer>", "<think>\n</think>\n{answer}",
    "```python\n{answer}\n```",
)  # fmt: skip
SLOW_S = 1.0  # of one completion
EXAMPLES = 5  # of each kind that are shown


@dataclass(frozen=True)
class Trial:
    """The verdicts on gold answers and on corrupted ones, in the form in which the verifier accepts most."""

    label: str  # of the verifier
    form: str
    right: list[tuple[str, Verdict]]  # (answer, verdict)
    wrong: list[tuple[str, Verdict]]
    seconds: float  # of one completion
    correct_at: float

    @property
    def refused(self) -> list[tuple[str, Verdict]]:
        """The gold answers that are not correct."""
        return [(answer, verdict) for answer, verdict in self.right if not verdict.correct]

    @property
    def accepted(self) -> list[tuple[str, Verdict]]:
        """The corrupted gold answers that are correct."""
        return [(answer, verdict) for answer, verdict in self.wrong if verdict.correct]

    def complaints(self) -> list[str]:
        """Return a sentence for everything that looks wrong."""
        sentences = []
        if self.refused:
            highest = max(verdict.reward for _, verdict in self.right)
            advice = (
                f"Their highest score is {highest:g}, and an answer is right from verifier.correct_at={self.correct_at:g} on: "
                f"set verifier.correct_at={highest:g} if this score is right."
                if 0 < highest < self.correct_at
                else "Give the form of a right completion by --completion 'The answer is {answer}', or correct the verifier."
            )
            sentences.append(f"{len(self.refused)} of {len(self.right)} gold answers do not count as right. {advice}")
        if self.accepted:
            sentences.append(
                f"{len(self.accepted)} of {len(self.wrong)} corrupted gold answers are accepted. A wrong completion would have "
                "the full reward."
            )
        if len({verdict.reward for _, verdict in (*self.right, *self.wrong)}) == 1:
            sentences.append("Every score is the same, so that nothing could be learned.")
        if self.seconds > SLOW_S:
            sentences.append(f"A completion takes {self.seconds:.1f} s, so that a batch of 128 takes minutes.")
        return sentences


def verify(cfg: Resolved, count: int, seed: int, form: str | None = None) -> Trial:
    """Try the run's verifier on `count` problems of the training data, drawn by `seed`, and as many corrupted gold answers.

    `form`: the completion, with {answer} for the answer; None: the best of FORMS. Raises Refused where the data has no gold
    answers, or the verifier cannot be used.
    """
    if form is not None and "{answer}" not in form:
        raise Refused(f"--completion {form!r} has no {{answer}}. Write for example: --completion 'The answer is {{answer}}.'")
    problems = [problem for problem in load_problems(cfg["data"]) if gold_of(problem)]
    if not problems:
        raise Refused(f"{cfg['data']['path']} has no gold answers to try the verifier on. Name their field: data.answer=FIELD.")
    rng = random.Random(seed)
    chosen = rng.sample(problems, min(count, len(problems)))
    golds = [gold_of(problem) for problem in chosen]
    others = [gold_of(problem) for problem in problems]
    corrupted = [corrupt(gold, rng, others) for gold in golds]
    forms = (form,) if form else FORMS

    def judged(text: str, answers: Sequence[str]) -> list[Verdict]:
        return verdicts_of(
            cfg, [completion(cfg, problem, text, answer) for problem, answer in zip(chosen, answers, strict=True)]
        )

    by_form = {}
    for each in forms:
        by_form[each] = judged(each, golds)
        if all(verdict.correct for verdict in by_form[each]):
            break
    best = max(by_form, key=lambda each: (sum(verdict.correct for verdict in by_form[each]), mean_reward(by_form[each])))
    start = time.perf_counter()
    wrong = judged(best, corrupted)
    seconds = (time.perf_counter() - start) / len(wrong)
    return Trial(
        verifier_of(cfg).label(), best, list(zip(golds, by_form[best], strict=True)), list(zip(corrupted, wrong, strict=True)),
        seconds, verifier_of(cfg).correct_at,
    )  # fmt: skip


def mean_reward(verdicts: Sequence[Verdict]) -> float:
    """Return the mean score."""
    return sum(verdict.reward for verdict in verdicts) / len(verdicts)


def gold_of(problem: Problem) -> str:
    """Return a problem's gold answer as a model would write it; "" where there is none, as in some tasks of reasoning-gym."""
    if is_task_gold(problem.answer):
        return str(read_gold(problem.answer)[2]["answer"] or "")
    return problem.answer


def completion(cfg: Resolved, problem: Problem, form: str, answer: str) -> Answered:
    """Return a completion of the given form with an answer to a problem."""
    columns: Mapping[str, Any] = {**problem.columns, "prompt": messages(problem, cfg["model"]["system_prompt"])}
    return Answered(form.replace("{answer}", answer), problem.answer, columns)


def corrupt(gold: str, rng: random.Random, others: Sequence[str]) -> str:
    """Return an answer that is wrong: the gold answer with another digit or letter, else another problem's gold answer."""
    if digits := list(re.finditer(r"\d", gold)):
        place = digits[-1].start()
        choices = [digit for digit in string.digits if digit != gold[place]]
    elif letters := list(re.finditer(r"[A-Za-z]", gold)):
        place = letters[-1].start()
        alphabet = "ABCD" if len(gold.strip("() .")) == 1 and gold[place] in "ABCD" else string.ascii_lowercase
        choices = [letter for letter in alphabet if letter.lower() != gold[place].lower()]
    else:
        return next((other for other in others if other != gold), f"{gold} x")
    return gold[:place] + rng.choice(choices) + gold[place + 1 :]


def as_json(trial: Trial) -> str:
    """Return the trial as JSON."""

    def rows(judged: Sequence[tuple[str, Verdict]]) -> list[Row]:
        return [
            {"answer": answer, "correct": verdict.correct, "score": verdict.reward, "reason": verdict.reason}
            for answer, verdict in judged
        ]

    facts = {
        "verifier": trial.label, "completion": trial.form, "seconds": trial.seconds, "golds": rows(trial.right),
        "corrupted": rows(trial.wrong), "complaints": trial.complaints(),
    }  # fmt: skip
    return json.dumps(facts, indent=1)


def show(trial: Trial, console: Console) -> None:
    """Print the counts, a table of the verdicts that look wrong, else of some of each kind, and what looks wrong."""
    console.print(f"verifier: {trial.label}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"completion: {trial.form!r}", highlight=False, markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "tried", "accepted", "mean score", "example", "score", "reason"):
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    for name, judged, odd in (("gold answers", trial.right, trial.refused), ("corrupted", trial.wrong, trial.accepted)):
        accepted = sum(verdict.correct for _, verdict in judged)
        score = f"{mean_reward([verdict for _, verdict in judged]):.2f}"
        for position, (answer, verdict) in enumerate((odd or judged[:1])[:EXAMPLES]):
            counts = (name, str(len(judged)), str(accepted), score) if position == 0 else ("",) * 4
            cells = (*counts, answer[:60], f"{verdict.reward:g}", verdict.reason)
            table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    console.print(f"{1000 * trial.seconds:.1f} ms per completion", highlight=False)
    for sentence in trial.complaints():
        console.print(sentence, style="yellow", highlight=False, markup=False, soft_wrap=True)
