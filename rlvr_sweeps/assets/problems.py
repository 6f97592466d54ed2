"""Problems: from the hub, a local .jsonl or an embedded world, to rows that the trainer and the evaluation share."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlvr_sweeps.assets.locations import cache_dir, locate
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json, read_rows, text_digest, write_text


@dataclass(frozen=True)
class Problem:
    id: str  # stable: the hash of the question's text
    question: str
    answer: str


def load_problems(source: Mapping[str, Any]) -> list[Problem]:
    """A source's problems in its order: all, or those that are held out from training where it asks for these.

    Refused where a field is missing or the count is not the stated one.
    """
    rows = raw_rows(source)
    question, answer = source["question"], source["answer"]
    for row in rows[:1]:
        for field in (question, answer):
            if field not in row:
                raise Refused(f"{source['path']} has no field {field!r}; its fields are {', '.join(sorted(row))}.")
    seen: Counter[str] = Counter()
    problems = []
    for row in rows:
        name = text_id(str(row[question]))
        seen[name] += 1
        name += f"-{seen[name]}" if seen[name] > 1 else ""  # a question that is asked twice
        problems.append(Problem(name, str(row[question]), str(row[answer])))
    if source.get("held_out"):
        problems = split(problems, source["held_out"])[1]
    if source["problems"] is not None and len(problems) != source["problems"]:
        raise Refused(f"{source['path']} holds {len(problems)} problems, but its configuration says {source['problems']}.")
    return problems


def split(problems: Sequence[Problem], holdout: int) -> tuple[list[Problem], list[Problem]]:
    """What is trained on and what is held out, each in its order: held out are the `holdout` smallest hashes of their ids.

    A question that is held out is trained on nowhere: its copies are in neither part.
    """
    if holdout >= len(problems) > 0:
        raise Refused(f"data.holdout={holdout} leaves nothing to train on: there are {len(problems)} problems.")
    held_out = {problem.id for problem in sorted(problems, key=lambda problem: text_id(f"held out {problem.id}"))[:holdout]}
    asked = {problem.question for problem in problems if problem.id in held_out}
    return [one for one in problems if one.question not in asked], [one for one in problems if one.id in held_out]


def imported_path(source: Mapping[str, Any]) -> Path:
    """Where `rlvr data import` files a hub data set on this machine."""
    key = text_id(json.dumps([source[name] for name in ("path", "revision", "subset", "split")]))
    return cache_dir() / "data" / f"{Path(source['path']).name}-{key}.jsonl"


def raw_rows(source: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A source's rows as they are: imported ones, a local .jsonl, a local folder or the hub through `datasets`."""
    if imported_path(source).exists():
        return read_rows(imported_path(source))
    place = locate(source["path"], source["revision"])
    if Path(place).suffix == ".jsonl":
        if not Path(place).exists():
            raise Refused(f"{place} does not exist.")
        return read_rows(Path(place))
    from datasets import load_dataset

    revision = None if Path(place).exists() else source["revision"]
    try:
        hub_rows = load_dataset(place, source["subset"], split=source["split"], revision=revision)
    except (OSError, ValueError) as error:
        raise Refused(
            f"{place} could not be loaded ({type(error).__name__}: {str(error).splitlines()[0][:200]}). On a machine without "
            "the hub: rlvr data export FOLDER where it is reached, then rlvr data import FOLDER here."
        ) from error
    return [dict(row) for row in hub_rows]


def text_id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def messages(problem: Problem, system_prompt: str | None) -> list[dict[str, str]]:
    """The conversation a problem is asked in, the same in training and in evaluation."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": problem.question}]


def prompt_ids(tokenizer: Any, problem: Problem, system_prompt: str | None) -> list[int]:
    """Token ids of the prompt, up to and including the template's opening of the answer."""
    return token_ids(tokenizer, messages(problem, system_prompt))


def token_ids(tokenizer: Any, conversation: list[dict[str, str]]) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True, return_dict=False)
    return ids


def all_prompt_ids(tokenizer: Any, problems: Sequence[Problem], system_prompt: str | None) -> list[list[int]]:
    """Every problem's `prompt_ids`, kept in the user's cache for all runs that ask the same of the same tokenizer.

    Not kept where the template asks for the time, as Llama 3's does, or where the cache cannot be read or written.
    """
    asked = [messages(problem, system_prompt) for problem in problems]
    if not hasattr(tokenizer, "backend_tokenizer") or "strftime_now" in str(tokenizer.chat_template):
        return [token_ids(tokenizer, conversation) for conversation in asked]
    special = [str(tokenizer.special_tokens_map), tokenizer.split_special_tokens]
    reader = [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, special]
    key = text_digest(json.dumps([version("transformers"), version("tokenizers"), reader, asked]))
    place = cache_dir() / "prompts" / f"{key[:32]}.json"
    kept: list[list[int]] | None = None
    with suppress(OSError):
        kept = read_json(place)
    if kept is None:
        kept = [token_ids(tokenizer, conversation) for conversation in asked]
        with suppress(OSError):
            write_text(place, json.dumps(kept))
    return kept


WINDOW = 13
WORD = re.compile(r"[a-z0-9]+|[^\x00-\x7f]")  # words of the Latin alphabet, single characters of others


def overlap_by_benchmark(benchmarks: Mapping[str, Any], training: Sequence[str]) -> dict[str, list[str]]:
    """By benchmark, the problems that share 13 words in a row with a training prompt; printed as warnings too.

    The benchmarks are loaded for it, so that one that cannot be loaded stops a run before its training, not after.
    """
    found = {}
    for name, source in benchmarks.items():
        problems = load_problems(source)
        if ids := overlapping_ids(training, [(problem.id, problem.question) for problem in problems]):
            found[name] = ids
            print(f"warning: {len(ids)} of {len(problems)} problems of {name} share {WINDOW} words with a training prompt")
    return found


def overlapping_ids(training: Iterable[str], evaluation: Iterable[tuple[str, str]]) -> list[str]:
    """Ids of the evaluation questions, given as (id, text), that share 13 words in a row with a training prompt.

    A question of fewer words counts where it is, as a whole and with its signs, a training prompt.
    """
    texts = list(training)
    known = {run for text in texts for run in window_hashes(text)} | {normalised(text) for text in texts}
    return [name for name, text in evaluation if normalised(text) in known or any(run in known for run in window_hashes(text))]


def window_hashes(text: str) -> Iterator[int]:
    """The hash of each run of 13 words."""
    words = WORD.findall(text.lower())
    for start in range(len(words) - WINDOW + 1):
        yield hash(tuple(words[start : start + WINDOW]))


def normalised(text: str) -> str:
    """A text without its spaces and its last punctuation, whatever the case."""
    return "".join(text.lower().split()).rstrip(".?!:")
