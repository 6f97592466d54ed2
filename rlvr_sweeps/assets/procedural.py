"""Generate problems with a task of reasoning-gym: a source whose path is `reasoning_gym:TASK`.

Task, parameters, size and seed determine the problems. Each question occurs once in a set. The questions of the test set
(`test_parameters`, `test_size`, `test_seed` of the source) are left out of the training set, so that the two are disjoint also
where a task has few different questions. reasoning-gym is imported on first use, because that takes more than a second.
"""

import copy
import difflib
import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.grading.tasks import CORRECT_SCORE, PREFIX, read_gold, scorer, write_gold

# Tasks whose answers the project's grader compares as mathematics; every other task is graded by its own score_answer.
MATHEMATICS = ("chain_sum", "gcd", "simple_equations", "gsm_symbolic")
READY = (*MATHEMATICS, "fraction_simplification")  # tasks with a file in conf/data
OWN_SETTINGS = ("size", "seed")  # settings of the source that a task's parameters must not repeat
GENERATOR_SETTINGS = ("parameters", "size", "seed", "test_parameters")
Rows = list[dict[str, Any]]


def is_procedural(source: Mapping[str, Any]) -> bool:
    """Return whether a source is a task of reasoning-gym."""
    return str(source["path"]).startswith(PREFIX)


def rows(source: Mapping[str, Any]) -> Rows:
    """Return the rows (question, answer, entry) of a source: distinct questions in order, without those of its test set.

    `answer` is a gold answer of the grading wing, `entry` the one by which the task's own score decides. Raise Refused where
    the source cannot work.
    """
    task = str(source["path"]).removeprefix(PREFIX)
    refuse_unknown(task, source["revision"])
    problems = distinct(generate(task, source, ""))
    if source.get("test_size") is None:
        return problems
    tested = {same_question(row["question"]) for row in generate(task, source, "test_")}
    refuse_equal_seeds(task, source, source["test_seed"], source["test_size"], "data.test_seed")
    kept = [row for row in problems if same_question(row["question"]) not in tested]
    if not kept:
        raise Refused(
            f"{source['path']} has {len(problems)} different questions with these parameters, and all of them are in the test "
            "set, so none is left to train on. Set a lower data.test_size, or data.parameters that allow more questions."
        )
    return kept


def training_set_sentence(source: Mapping[str, Any]) -> str | None:
    """Return how many questions a generated training set has, and how many were left out; None where none was."""
    if not is_procedural(source):
        return None
    kept, different = len(rows(source)), len(distinct(generate(str(source["path"]).removeprefix(PREFIX), source, "")))
    reasons = {"repeat an earlier question": source["size"] - different, "are in the test set": different - kept}
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
    start = f"{source['path']}: {kept:,} of {source['size']:,} generated questions are used for training"
    return f"{start}; {left_out}." if left_out else None


def same_question(question: str) -> str:
    """Return a question in lower case, without its spaces and its final punctuation; equal texts are the same question."""
    return "".join(question.lower().split()).rstrip(".?!:")


def distinct(rows: Rows) -> Rows:
    """Return the first row of each question."""
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(same_question(row["question"]), row)
    return list(first.values())


def generate(task: str, source: Mapping[str, Any], prefix: str) -> Rows:
    """Return the rows of a source's own set, or with the prefix `test_` of its test set."""
    size, seed, parameters = (source.get(f"{prefix}{key}") for key in ("size", "seed", "parameters"))
    if size is None or size < 1 or seed is None or seed < 0:
        raise Refused(
            f"{PREFIX}{task} has {prefix}size={size} and {prefix}seed={seed}. Allowed: {prefix}size, the number of problems, "
            f"from 1; {prefix}seed from 0. Set them as data.{prefix}size and data.{prefix}seed."
        )
    return copy.deepcopy(generated(task, json.dumps(parameters or {}, sort_keys=True), size, seed))


@lru_cache(maxsize=8)
def generated(task: str, parameters_json: str, size: int, seed: int) -> Rows:
    """Generate the rows of a task; its parameters are given as JSON so that they can be a key of the cache."""
    import reasoning_gym

    parameters = json.loads(parameters_json)
    if clash := sorted(set(parameters) & set(OWN_SETTINGS)):
        raise Refused(
            f"The parameters of {PREFIX}{task} contain {' and '.join(clash)}. Set data.size and data.seed (of the test set: "
            "data.test_size and data.test_seed) instead."
        )
    try:
        dataset = reasoning_gym.create_dataset(task, size=size, seed=seed, **parameters)
        entries = [dataset[index] for index in range(size)]
    except Exception as error:  # each task raises types of its own: AssertionError, ValueError, TypeError, …
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise Refused(
            f"reasoning-gym refuses {parameters} for {PREFIX}{task}: {reason}. Its parameters and their defaults: "
            f"{default_parameters(task)}. Set them as data.parameters.NAME=VALUE (with a + in front where the file in "
            f"conf/data does not name them), or use the file of the task: data={'|'.join(READY)}."
        ) from error
    if task in MATHEMATICS:
        return [
            {"question": entry["question"], "answer": str(entry["answer"]), **entry_column(task, parameters, entry)}
            for entry in entries
        ]
    golds = [gold_of(task, parameters, entry) for entry in entries]
    return [{"question": entry["question"], "answer": gold, "entry": gold} for entry, gold in zip(entries, golds, strict=True)]


def entry_column(task: str, parameters: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, str]:
    """Return the column `entry` by which the task's own score decides; none where an entry cannot be written as JSON."""
    try:
        return {"entry": write_gold(task, parameters, entry)}
    except (TypeError, ValueError):
        return {}


def gold_of(task: str, parameters: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Return the gold answer that carries an entry. Raise Refused where the task cannot grade an entry stored as text."""
    try:
        gold = write_gold(task, parameters, entry)
        stored = read_gold(gold)[2]
        accepted = stored["answer"] is None or scorer(task, parameters)(stored["answer"], stored) >= CORRECT_SCORE
    except Exception as error:  # score_answer of any task
        accepted, reason = False, f" ({type(error).__name__}: {error})"
    else:
        reason = ""
    if not accepted:
        raise Refused(
            f"{PREFIX}{task} cannot be used: its score_answer does not accept its own answer once the entry is stored as JSON"
            f"{reason}. Choose another task, for instance {', '.join(READY)}."
        )
    return gold


def default_parameters(task: str) -> str:
    """Return the parameters of a task as `name=default, …`."""
    from dataclasses import MISSING, fields

    from reasoning_gym.factory import DATASETS

    described = []
    for field in fields(DATASETS[task][1]):
        if field.name not in OWN_SETTINGS:
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            described.append(f"{field.name}={default}")
    return ", ".join(described) or "none"


def refuse_unknown(task: str, revision: str | None) -> None:
    """Raise Refused where reasoning-gym is missing, has another version than `revision`, or has no such task."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise Refused(
            f"{PREFIX}{task} needs the package reasoning-gym, which is not installed. Install it: pip install '.[smollm2]'."
        )
    if task == "None":
        raise Refused(
            "benchmark=reasoning_gym is the test set of a task of reasoning-gym, but data is not such a task. Choose the task "
            f"as the training data: data={'|'.join(READY)}, or data=any_task data.task=NAME."
        )
    version = importlib.metadata.version("reasoning-gym")
    if revision is not None and revision != version:
        raise Refused(
            f"{PREFIX}{task}: this configuration pins reasoning-gym {revision}, but {version} is installed, which may generate "
            f"other problems. Install the pinned version: pip install reasoning-gym=={revision}."
        )
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        near = difflib.get_close_matches(task, DATASETS, n=3)
        advice = f"Did you mean {' or '.join(near)}?" if near else f"Its tasks: {', '.join(sorted(DATASETS))}."
        raise Refused(f"reasoning-gym has no task {task!r}. {advice}")


def refuse_equal_seeds(task: str, source: Mapping[str, Any], seed: int, size: int, name: str) -> None:
    """Raise Refused where a test set of the same task shares seeds with the source: problem i is made from seed + i."""
    first, count = source["seed"] or 0, source["size"] or 0
    if seed < first + count and first < seed + size:
        raise Refused(
            f"{name}={seed} overlaps with data.seed={first}: reasoning-gym makes problem i of {task} from seed + i, so "
            f"the {size} test problems and the {count} training problems share seeds. Set {name} to {first + count} or more."
        )


def refuse_unfit(cfgs: Sequence[Mapping[str, Any]]) -> None:
    """Generate the problems of all sources that are tasks of reasoning-gym, and raise Refused for what cannot work.

    Refused are missing packages, unknown tasks, parameters, sizes and seeds that cannot work, training and test sets with
    common questions, and settings of the generator at a source of another kind. Each combination of sources is checked once.
    """
    checked = set()
    for cfg in cfgs:
        key = json.dumps([cfg["data"], cfg["benchmark"]], sort_keys=True)
        if key not in checked:
            checked.add(key)
            refuse_unfit_sources(cfg["data"], cfg["benchmark"])


def refuse_unfit_sources(data: Mapping[str, Any], benchmarks: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise Refused for a training set and its benchmarks; see `refuse_unfit`."""
    for name, source in {"data": data, **{f"benchmark.{name}": source for name, source in benchmarks.items()}}.items():
        given = [f"{name}.{setting}" for setting in GENERATOR_SETTINGS if source.get(setting) not in (None, {})]
        if given and not is_procedural(source):
            raise Refused(
                f"{', '.join(given)}: these settings are for tasks of reasoning-gym, but {name}.path={source['path']}. Leave "
                f"them out, or choose a task: data={'|'.join(READY)}."
            )
    tests = {name: source for name, source in benchmarks.items() if is_procedural(source)}
    trained = {same_question(row["question"]) for row in rows(data)} if is_procedural(data) else set()
    for name, source in tests.items():
        questions = {same_question(row["question"]) for row in rows(source)}
        if source.get("held_out") or not trained:
            continue
        if source["path"] == data["path"]:
            task = str(data["path"]).removeprefix(PREFIX)
            refuse_equal_seeds(task, data, source["seed"], source["size"], f"benchmark.{name}.seed")
        if common := questions & trained:
            raise Refused(
                f"{len(common)} of the {len(questions)} questions of benchmark.{name} are in the training set. Use the test "
                "set that training leaves out (benchmark=reasoning_gym), and change it by data.test_size, data.test_seed and "
                "+data.test_parameters={NAME: VALUE}."
            )
