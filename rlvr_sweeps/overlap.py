"""Whether evaluation problems occur in the training prompts: shared runs of 13 words (Brown et al. 2020, App. C)."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlvr_sweeps.data import load_problems

WORDS = 13
TOKEN = re.compile(r"[a-z0-9]+|[^\x00-\x7f]")  # words of the Latin alphabet, single characters of others


def by_benchmark(benchmarks: Mapping[str, Any], training: Sequence[str]) -> dict[str, list[str]]:
    """By benchmark, the problems that share 13 words in a row with a training prompt; printed as warnings too.

    The benchmarks are loaded for it, so that one that cannot be loaded stops a run before its training, not after.
    """
    found = {}
    for name, source in benchmarks.items():
        problems = load_problems(source)
        if ids := shared(training, [(problem.id, problem.question) for problem in problems]):
            found[name] = ids
            print(f"warning: {len(ids)} of {len(problems)} problems of {name} share {WORDS} words with a training prompt")
    return found


def shared(training: Iterable[str], evaluation: Iterable[tuple[str, str]]) -> list[str]:
    """Ids of the evaluation questions, given as (id, text), that share 13 words in a row with a training prompt.

    A question of fewer words counts where it is, as a whole and with its signs, a training prompt.
    """
    texts = list(training)
    known = {run for text in texts for run in runs(text)} | {whole(text) for text in texts}
    return [name for name, text in evaluation if whole(text) in known or any(run in known for run in runs(text))]


def runs(text: str) -> Iterator[int]:
    """The hash of each run of 13 words."""
    words = TOKEN.findall(text.lower())
    for start in range(len(words) - WORDS + 1):
        yield hash(tuple(words[start : start + WORDS]))


def whole(text: str) -> str:
    """A text without its spaces and its last punctuation, whatever the case."""
    return "".join(text.lower().split()).rstrip(".?!:")
