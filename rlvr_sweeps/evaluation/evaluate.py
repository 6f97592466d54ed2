"""The evaluate stage: decode and grade k samples of every problem, store all of them, and write the run's summary.

Several processes share the (problem, sample) pairs: each takes every n-th request of one list, longest prompts first, and
writes a shard of its own, so that a resumed stage decodes exactly the missing samples. Process 0 gathers the shards.
"""

import datetime
import os
import time
from collections.abc import Callable

from torch.distributed.rendezvous import rendezvous

from rlvr_sweeps.assets.problems import Problem, load_problems, messages, prompt_ids, warn_of_unreadable_golds
from rlvr_sweeps.config.identity import evaluation_spec
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.config.verifiers import verdicts_of, verifier_of
from rlvr_sweeps.evaluation.engines import Completion, Request, engine_name, make_engine, tokenizer_of
from rlvr_sweeps.evaluation.regrade import new_verdicts, score_of, write_samples
from rlvr_sweeps.evaluation.samples import SAMPLE_KEYS, gather, summarise
from rlvr_sweeps.files import append_rows, read_json, read_rows, write_json
from rlvr_sweeps.gpus import visible_gpus
from rlvr_sweeps.grading.verifiers import Answered
from rlvr_sweeps.runs.checksums import verify
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training.seeded_sampling import seed_of

Problems = dict[str, list[Problem]]


def evaluate(run: Run, cfg: Resolved) -> None:
    """Decode and grade the missing samples, and write summary.json; samples of another evaluation are set aside first.

    The checksums of merged/ are verified before it decodes anything. Raises Damaged where a file of the model, or of samples,
    is damaged, and RuntimeError where samples are missing after all processes have ended.
    """
    process, processes, barrier = join_processes()
    problems = {name: load_problems(source) for name, source in cfg["benchmark"].items()}
    if process == 0:
        set_aside_other_samples(run, cfg)
        write_questions(run, cfg, problems)
        for name, rows in problems.items() if verifier_of(cfg).is_math else ():
            warn_of_unreadable_golds({row.id: row.answer for row in rows}, cfg["benchmark"][name]["path"])
        if gather_samples(run, cfg, problems) and is_trained(cfg):
            verify(run.merged_path)
        regrade_samples(run, cfg)
    barrier("ready")
    decode_missing(run, cfg, problems, process, processes)
    barrier("answered")
    if process == 0:
        missing = gather_samples(run, cfg, problems)
        if missing:
            raise RuntimeError(f"{missing} samples of {run.name} are missing although every process has ended.")
        write_json(run.summary_path, summarise(run, cfg) | {"engine": engine_name(cfg), "finished": time.time()})


def write_questions(run: Run, cfg: Resolved, problems: Problems) -> None:
    """Write question and gold answer of each problem, and the columns that reward functions read, for `rlvr regrade`.

    Without reward functions there are no columns.
    """
    is_math = verifier_of(cfg).is_math
    questions = {
        name: {row.id: [row.question, row.answer, *([] if is_math else [columns_of(row, cfg)])] for row in rows}
        for name, rows in problems.items()
    }
    write_json(run.questions_path, questions)


def columns_of(problem: Problem, cfg: Resolved) -> dict[str, object]:
    """Return what reward functions read of a problem: its columns, and its prompt as a conversation."""
    return {**problem.columns, "prompt": messages(problem, cfg["model"]["system_prompt"])}


def join_processes() -> tuple[int, int, Callable[[str], None]]:
    """Return (index of this process, number of processes, a barrier by name); each process gets a GPU of its own.

    The processes share torchrun's store and form no process group: each has its own engine, and vLLM makes its own group.
    """
    process, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if processes == 1:
        return 0, 1, lambda _: None
    if gpus := visible_gpus():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(os.environ["LOCAL_RANK"])]
    store, _, _ = next(rendezvous("env://"))

    def barrier(name: str) -> None:
        if store.add(name, 1) == processes:
            store.set(f"{name}: all", "1")
        store.wait([f"{name}: all"], datetime.timedelta(days=7))  # the slowest process decides

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    return process, processes, barrier


def set_aside_other_samples(run: Run, cfg: Resolved) -> None:
    """Move samples and summary to the run's old/ where they are of another evaluation, engine or training."""
    trained = (run.marker("train") or {}).get("finished")
    request = {"evaluation": evaluation_spec(cfg), "trained": trained, "engine": engine_name(cfg)}
    request_path = run.path / "eval" / "request.json"
    if read_json(request_path) != request:
        run.set_aside([run.path / "eval", run.summary_path], "evaluated again, for another request")
        write_json(request_path, request)


def regrade_samples(run: Run, cfg: Resolved) -> None:
    """Grade the stored samples again, so that all verdicts are of this version of the grader."""
    for name, (_, rows) in new_verdicts(run, cfg).items():
        write_samples(run, name, rows)


def gather_samples(run: Run, cfg: Resolved, problems: Problems) -> int:
    """Gather the processes' shards, and return the number of samples that are still missing."""
    missing = 0
    for name, rows in problems.items():
        k = cfg["benchmark"][name]["k"]
        missing += len(rows) * k - len(gather(run, name, [problem.id for problem in rows], k))
    return missing


def decode_missing(run: Run, cfg: Resolved, problems: Problems, process: int, processes: int) -> None:
    """Decode, grade and append this process's share of the missing samples."""
    tokenizer = tokenizer_of(run, cfg)
    requests = all_requests(cfg, problems, tokenizer)
    stored = {
        (name, row["problem"], row["sample"])
        for name in problems
        for path in (run.samples_path(name), run.shard_path(name, process))
        for row in read_rows(path, *SAMPLE_KEYS)
    }
    missing = [
        request
        for position, request in enumerate(requests)
        if position % processes == process and (request.benchmark, request.problem.id, request.index) not in stored
    ]
    if not missing:
        return
    engine = make_engine(run, cfg, tokenizer, len(requests[0].prompt))
    for completions in engine.decode(missing):
        write_rows(run, cfg, completions, process, engine.name)


def all_requests(cfg: Resolved, problems: Problems, tokenizer: object) -> list[Request]:
    """Return every request, the longest prompts first; the list is the same in every process."""
    requests = []
    for name, rows in problems.items():
        for problem in rows:
            prompt = tuple(prompt_ids(tokenizer, problem, cfg["model"]["system_prompt"]))
            requests += [
                Request(name, problem, index, prompt, seed_of(cfg["evaluation"]["seed"], problem.id, index))
                for index in range(cfg["benchmark"][name]["k"])
            ]
    return sorted(requests, key=lambda request: -len(request.prompt))


def write_rows(run: Run, cfg: Resolved, completions: list[Completion], process: int, engine: str) -> None:
    """Grade completions and append them to this process's shards."""
    is_math = verifier_of(cfg).is_math
    answered = [
        Answered(text, request.problem.answer, {} if is_math else columns_of(request.problem, cfg))
        for request, text, *_ in completions
    ]
    verdicts = verdicts_of(cfg, answered)
    by_benchmark: dict[str, list[dict[str, object]]] = {}
    for (request, text, tokens, truncated), verdict in zip(completions, verdicts, strict=True):
        row = {
            "problem": request.problem.id, "sample": request.index, "seed": request.seed, "text": text,
            "answer": verdict.answer, "gold": request.problem.answer, "correct": verdict.correct,
            "reason": verdict.reason, "tokens": tokens, "truncated": truncated, "engine": engine,
        } | score_of(verdict)  # fmt: skip
        by_benchmark.setdefault(request.benchmark, []).append(row)
    for benchmark, rows in by_benchmark.items():
        append_rows(run.shard_path(benchmark, process), rows)
