"""Load problem sets, build their prompts, and find benchmark problems that occur in the training prompts.

Problems come from the hub, a file (`problem_files.py`), an embedded world, a task of reasoning-gym (`procedural.py`), or the
cache that `rlvr data import` fills. Training and evaluation use the same problems, conversations and token ids.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlvr_sweeps.assets import procedural
from rlvr_sweeps.assets.locations import cache_dir, locate
from rlvr_sweeps.assets.problem_files import HUB, downloaded, is_file, plain_row, read_problem_file
from rlvr_sweeps.assets.procedural import same_question
from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.files import Row, read_json, read_rows, text_digest, write_text
from rlvr_sweeps.grading.golds import unreadable
from rlvr_sweeps.grading.verifiers import RESERVED

WINDOW = 13  # words; a problem overlaps with the training prompts if it shares this many in a row
WORD = re.compile(r"[a-z0-9]+|[^\x00-\x7f]")  # words of the Latin alphabet, single characters of other scripts


@dataclass(frozen=True)
class Problem:
    """One problem of a training set or a benchmark."""

    id: str  # hash of the question's text, with a number appended for a repeated question
    question: str  # of a list of messages: their contents, with empty lines between them
    answer: str  # the gold answer; "" where the source has none (answer: null)
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)  # what a verifier may read, by name
    messages: tuple[Mapping[str, str], ...] = ()  # the prompt, where the source has it as a list of messages


def load_problems(source: Mapping[str, Any]) -> list[Problem]:
    """Return a source's problems in its order, without its test set; with `part: test` only that, with `held_out` only those.

    Raise Refused if a field is missing, an answer has no `answer_after`, or the count differs from the source's `problems`.
    """
    rows = raw_rows(source)
    refuse_missing_fields(rows, source)
    question, answer = source["question"], source["answer"]
    seen: Counter[str] = Counter()
    problems = []
    for row in rows:
        conversation = read_messages(row[question], source)
        text = "\n\n".join(message["content"] for message in conversation) if conversation else str(row[question])
        id_ = text_id(json.dumps(conversation) if conversation else text)
        seen[id_] += 1
        id_ += f"-{seen[id_]}" if seen[id_] > 1 else ""
        gold = "" if answer is None else answer_of(str(row[answer]), source)
        problems.append(Problem(id_, text, gold, columns_of(row, text, gold, source), conversation))
    if source.get("test_size") and not procedural.is_procedural(source):
        trained, tested = split_test(problems, source)
        problems = tested if source.get("part") == "test" else trained
    if source.get("held_out"):
        problems = split(problems, source["held_out"])[1]
    if source["problems"] is not None and len(problems) != source["problems"]:
        raise Refused(f"{source['path']} has {len(problems)} problems, but its configuration says {source['problems']}.")
    return problems


def refuse_missing_fields(rows: Sequence[Mapping[str, Any]], source: Mapping[str, Any]) -> None:
    """Raise Refused where a row lacks a field that the source names, or the source maps columns in a way that cannot work."""
    mapped = source.get("columns") or {}
    for name in mapped:
        if name in ("question", "answer"):
            raise Refused(f"{source['path']}: columns.{name} is set by a setting of its own: data.{name}=FIELD.")
        if name in RESERVED:
            raise Refused(f"{source['path']}: columns.{name} is a name that verifiers get already. Choose another name.")
    needed = [field for field in (source["question"], source["answer"], *mapped.values()) if field is not None]
    for number, row in enumerate(rows, 1):
        for field_name in needed:
            if field_name not in row:
                where = "has no field" if number == 1 else f"has no field in row {number}:"
                raise Refused(f"{source['path']} {where} {field_name!r}; its fields are {', '.join(sorted(row))}.")


def read_messages(value: Any, source: Mapping[str, Any]) -> tuple[dict[str, str], ...]:
    """Return a question that is a list of messages, also one written as JSON text, as in a .csv file; () for a plain text.

    Raise Refused where the messages cannot be a prompt.
    """
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        with suppress(json.JSONDecodeError):
            value = json.loads(value)
    if not isinstance(value, list):
        return ()
    is_conversation = all(
        isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in value
    )
    if not value or not is_conversation or value[-1]["role"] != "user":
        raise Refused(
            f"{source['path']}: a question is a list, but no prompt: {str(value)[:100]!r}. Write a text, or a list of messages "
            "{role, content}, of which the last has the role user."
        )
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def columns_of(row: Mapping[str, Any], question: str, gold: str, source: Mapping[str, Any]) -> Row:
    """Return what verifiers may read of a row: every field by its name, those of `columns` by the name given there.

    `question` is the question's text, and `answer` the value of the answer's field, or the part of it after `answer_after`.
    """
    plain = plain_row(row)
    columns = {name: value for name, value in plain.items() if name not in RESERVED}
    columns |= {
        name: columns[field_name] for name, field_name in (source.get("columns") or {}).items() if field_name in columns
    }
    if source["answer"] is not None:
        columns["answer"] = gold if source.get("answer_after") else plain.get(source["answer"], gold)
    return columns | {"question": question}


def split_test(problems: Sequence[Problem], source: Mapping[str, Any]) -> tuple[list[Problem], list[Problem]]:
    """Return (training, test) problems of a file: test are the `test_size` ids with the smallest hashes, by `test_seed`.

    Questions that differ from a test question in spaces or case only are in neither part. Raise Refused where nothing is left
    to train on.
    """
    size, seed = source["test_size"], source.get("test_seed") or 0
    trained, tested = split(problems, size, f"test {seed}", "data.test_size")
    questions = {same_question(problem.question) for problem in tested}
    return [problem for problem in trained if same_question(problem.question) not in questions], tested


def warn_of_unreadable_golds(golds: Mapping[str, str], path: str) -> int:
    """Print which problems have a gold answer that is compared only as text, and return their number; `golds` by problem id.

    A right answer in another spelling than the gold answer's own is judged wrong there.
    """
    texts = set(unreadable(golds.values()))
    affected = [(problem, gold) for problem, gold in golds.items() if gold in texts]
    if affected:
        shown = "; ".join(f"problem {problem}: {gold[:80]!r}" for problem, gold in affected[:5])
        print(
            f"warning: {len(affected)} of {len(golds)} gold answers of {path} can be compared only as text, so that another "
            f"spelling of them is judged wrong: {shown}{'; …' if len(affected) > 5 else ''}",
            flush=True,
        )
    return len(affected)


def answer_of(text: str, source: Mapping[str, Any]) -> str:
    """Return the gold answer in the answer field's text: all of it, or what follows the last `answer_after` of the source."""
    mark = source.get("answer_after")
    if mark is None:
        return text
    if mark not in text:
        raise Refused(f"{source['path']} has an answer without {mark!r} (answer_after): {text[:100]!r}.")
    return text.rpartition(mark)[2].strip()


def split(
    problems: Sequence[Problem], holdout: int, salt: str = "held out", name: str = "data.holdout"
) -> tuple[list[Problem], list[Problem]]:
    """Return the problems to train on and the held-out ones, each in order: the `holdout` ids with the smallest hashes.

    `salt` chooses the hash, `name` is the setting's name. Copies of a held-out question are in neither part. Raise Refused if
    nothing is left to train on.
    """
    if holdout >= len(problems) > 0:
        raise Refused(f"{name}={holdout} leaves nothing to train on: the set has {len(problems)} problems. Set it lower.")
    held_out_ids = {problem.id for problem in sorted(problems, key=lambda problem: text_id(f"{salt} {problem.id}"))[:holdout]}
    held_out = [problem for problem in problems if problem.id in held_out_ids]
    held_out_questions = {problem.question for problem in held_out}
    return [problem for problem in problems if problem.question not in held_out_questions], held_out


def imported_path(source: Mapping[str, Any]) -> Path:
    """Return where `rlvr data import` stores a hub data set on this machine."""
    key = text_id(json.dumps([source[name] for name in ("path", "revision", "subset", "split")]))
    return cache_dir() / "data" / f"{Path(source['path']).name}-{key}.jsonl"


def is_on_this_machine(source: Mapping[str, Any]) -> bool:
    """Return whether a source's problems are here: generated, imported, embedded, or in a file or folder."""
    if procedural.is_procedural(source) or imported_path(source).exists():
        return True
    return Path(locate(source["path"], source["revision"])).exists()


def raw_rows(source: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a source's unprocessed rows: generated, imported, of a file, or of a folder or the hub by `datasets`."""
    if procedural.is_procedural(source):
        return procedural.rows(source)
    if imported_path(source).exists():
        return read_rows(imported_path(source))
    location = locate(source["path"], source["revision"])
    if location.startswith(HUB):
        return read_problem_file(downloaded(location, source["revision"]))
    if is_file(location):
        return read_problem_file(Path(location))
    from datasets import load_dataset

    revision = None if Path(location).exists() else source["revision"]
    try:
        hub_rows = load_dataset(location, source["subset"], split=source["split"], revision=revision)
    except (OSError, ValueError) as error:
        raise Refused(
            f"{location} could not be loaded ({type(error).__name__}: {str(error).splitlines()[0][:200]}). If this machine "
            "cannot reach the hub: rlvr data export FOLDER on one that can, then rlvr data import FOLDER here."
        ) from error
    return [dict(row) for row in hub_rows]


def text_id(text: str) -> str:
    """Return twelve hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def messages(problem: Problem, system_prompt: str | None) -> list[dict[str, str]]:
    """Return the conversation of a problem's prompt, the same in training and in evaluation.

    Raise Refused where both the problem and the model have a system prompt.
    """
    if problem.messages and system_prompt and problem.messages[0]["role"] == "system":
        raise Refused(
            f"model.system_prompt is set, but the prompts of the problems have a system message of their own "
            f"({problem.messages[0]['content'][:80]!r}). Leave model.system_prompt out, or remove their system messages."
        )
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    own = [dict(message) for message in problem.messages]
    return [*system, *(own or [{"role": "user", "content": problem.question}])]


def prompt_ids(tokenizer: Any, problem: Problem, system_prompt: str | None) -> list[int]:
    """Return the prompt's token ids, including the beginning of the answer that the chat template adds."""
    return token_ids(tokenizer, messages(problem, system_prompt))


def token_ids(tokenizer: Any, conversation: list[dict[str, str]]) -> list[int]:
    """Return a conversation's token ids, including the beginning of the answer that the chat template adds."""
    ids: list[int] = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True, return_dict=False)
    return ids


def all_prompt_ids(tokenizer: Any, problems: Sequence[Problem], system_prompt: str | None) -> list[list[int]]:
    """Return each problem's `prompt_ids`, cached on this machine by tokenizer, chat template and conversations.

    Not cached if the template depends on the date, as Llama 3's does, or if the cache cannot be read or written.
    """
    conversations = [messages(problem, system_prompt) for problem in problems]
    if not hasattr(tokenizer, "backend_tokenizer") or "strftime_now" in str(tokenizer.chat_template):
        return [token_ids(tokenizer, conversation) for conversation in conversations]
    special = [str(tokenizer.special_tokens_map), tokenizer.split_special_tokens]
    tokenizer_state = [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, special]
    key = text_digest(json.dumps([version("transformers"), version("tokenizers"), tokenizer_state, conversations]))
    path = cache_dir() / "prompts" / f"{key[:32]}.json"
    cached: list[list[int]] | None = None
    with suppress(OSError, Damaged):
        cached = read_json(path)
    if cached is None:
        cached = [token_ids(tokenizer, conversation) for conversation in conversations]
        with suppress(OSError):
            write_text(path, json.dumps(cached))
    return cached


def overlap_by_benchmark(benchmarks: Mapping[str, Any], training: Sequence[str]) -> dict[str, list[str]]:
    """Return, by benchmark, the ids of problems that share 13 consecutive words with a training prompt; print a warning.

    A generated benchmark overlaps only where a whole question is equal: its questions repeat the words of a template. This
    loads every benchmark, so that one that cannot be loaded stops the run before its training.
    """
    overlap = {}
    for name, source in benchmarks.items():
        problems = load_problems(source)
        if procedural.is_procedural(source):
            prompts = {same_question(text) for text in training}
            ids = [problem.id for problem in problems if same_question(problem.question) in prompts]
        else:
            ids = overlapping_ids(training, [(problem.id, problem.question) for problem in problems])
        if ids:
            overlap[name] = ids
            print(f"warning: {len(ids)} of {len(problems)} problems of {name} share {WINDOW} words with a training prompt")
    return overlap


def overlapping_ids(training: Iterable[str], evaluation: Iterable[tuple[str, str]]) -> list[str]:
    """Return the ids of the evaluation questions (id, text) that share 13 consecutive words with a training prompt.

    A shorter question overlaps if all of it, signs included, is a training prompt.
    """
    texts = list(training)
    prompts, windows = {same_question(text) for text in texts}, {window for text in texts for window in window_hashes(text)}
    return [
        id_
        for id_, text in evaluation
        if same_question(text) in prompts or any(window in windows for window in window_hashes(text))
    ]


def window_hashes(text: str) -> Iterator[int]:
    """Yield the hash of each 13 consecutive words."""
    words = WORD.findall(text.lower())
    for start in range(len(words) - WINDOW + 1):
        yield hash(tuple(words[start : start + WINDOW]))
