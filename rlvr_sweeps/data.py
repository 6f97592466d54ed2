"""Problems: from the hub, a local .jsonl or an embedded world, to rows that the trainer and the evaluation share."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr_sweeps.assets import locate
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_rows


@dataclass(frozen=True)
class Problem:
    id: str  # stable: the hash of the question's text
    question: str
    answer: str


def load_problems(source: Mapping[str, Any]) -> list[Problem]:
    """All problems of a source, in its order. Refused where a field is missing or the count is not the stated one."""
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
    if source["problems"] is not None and len(problems) != source["problems"]:
        raise Refused(f"{source['path']} holds {len(problems)} problems, but its configuration says {source['problems']}.")
    return problems


def raw_rows(source: Mapping[str, Any]) -> list[dict[str, Any]]:
    place = locate(source["path"], source["revision"])
    if Path(place).suffix == ".jsonl":
        if not Path(place).exists():
            raise Refused(f"{place} does not exist.")
        return read_rows(Path(place))
    from datasets import load_dataset

    hub_rows = load_dataset(place, source["subset"], split=source["split"], revision=source["revision"])
    return [dict(row) for row in hub_rows]


def text_id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def messages(problem: Problem, system_prompt: str | None) -> list[dict[str, str]]:
    """The conversation a problem is asked in, the same in training and in evaluation."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": problem.question}]


def prompt_ids(tokenizer: Any, problem: Problem, system_prompt: str | None) -> list[int]:
    """Token ids of the prompt, up to and including the template's opening of the answer."""
    ids: list[int] = tokenizer.apply_chat_template(
        messages(problem, system_prompt), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return ids
