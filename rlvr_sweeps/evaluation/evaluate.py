"""The evaluate stage: k samples of every problem, all of them kept, and the run's summary.

Several processes share the (problem, sample) pairs: each takes its places in one list, longest prompts first, and writes a
file of its own, so that what is missing after a stop is known to the sample. The first of them gathers the files.
"""

import datetime
import os
import time
from collections.abc import Callable

from torch.distributed.rendezvous import rendezvous

from rlvr_sweeps.assets.problems import Problem, load_problems, prompt_ids
from rlvr_sweeps.config.identity import evaluation_spec
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.evaluation.engines import Completion, Request, engine_name, make_engine, tokenizer_of
from rlvr_sweeps.evaluation.regrade import new_verdicts, write_samples
from rlvr_sweeps.evaluation.samples import gather, summarise
from rlvr_sweeps.files import append_rows, read_json, read_rows, write_json
from rlvr_sweeps.gpus import visible_gpus
from rlvr_sweeps.grading.grader import grade_all
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training.seeded_sampling import seed_of

Problems = dict[str, list[Problem]]


def evaluate(run: Run, cfg: Resolved) -> None:
    """Sample what is missing, grade it, and write summary.json. Samples of another request are set aside first."""
    process, processes, everyone = join()
    problems = {name: load_problems(source) for name, source in cfg["benchmark"].items()}
    if process == 0:
        make_room(run, cfg)
        asked = {name: {row.id: [row.question, row.answer] for row in rows} for name, rows in problems.items()}
        write_json(run.questions_path, asked)
        collect(run, cfg, problems)
        regrade_samples(run, cfg)
    everyone("ready")
    answer(run, cfg, problems, process, processes)
    everyone("answered")
    if process == 0:
        missing = collect(run, cfg, problems)
        if missing:
            raise RuntimeError(f"{missing} samples are missing although every process has ended")
        write_json(run.summary_path, summarise(run, cfg) | {"engine": engine_name(cfg), "finished": time.time()})


def join() -> tuple[int, int, Callable[[str], None]]:
    """(this process's number, how many there are, a barrier by name), each on a GPU of its own where there are GPUs.

    The processes meet at torchrun's store and form no process group: each has an engine to itself, and vLLM makes its own.
    """
    process, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if processes == 1:
        return 0, 1, lambda _: None
    if gpus := visible_gpus():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(os.environ["LOCAL_RANK"])]
    store, _, _ = next(rendezvous("env://"))

    def everyone(name: str) -> None:
        if store.add(name, 1) == processes:
            store.set(f"{name}: all", "1")
        store.wait([f"{name}: all"], datetime.timedelta(days=7))  # the slowest process decides

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    return process, processes, everyone


def make_room(run: Run, cfg: Resolved) -> None:
    """Set aside the samples and the summary of another request, or of another training of this run."""
    trained = (read_json(run.stage_path("train")) or {}).get("finished")
    asked = {"evaluation": evaluation_spec(cfg), "trained": trained, "engine": engine_name(cfg)}
    marker = run.path / "eval" / "request.json"
    if read_json(marker) != asked:
        run.set_aside([run.path / "eval", run.summary_path], "evaluated again, for another request")
        write_json(marker, asked)


def regrade_samples(run: Run, cfg: Resolved) -> None:
    """Where samples from before are kept: the verdicts of one version of the grader for all."""
    for name, (_, rows) in new_verdicts(run, cfg).items():
        write_samples(run, name, rows)


def collect(run: Run, cfg: Resolved, problems: Problems) -> int:
    """Gather what the processes wrote; returns how many samples are still missing."""
    missing = 0
    for name, rows in problems.items():
        k = cfg["benchmark"][name]["k"]
        missing += len(rows) * k - len(gather(run, name, [problem.id for problem in rows], k))
    return missing


def answer(run: Run, cfg: Resolved, problems: Problems, process: int, processes: int) -> None:
    """Decode, grade and append this process's share of what is missing."""
    tokenizer = tokenizer_of(run, cfg)
    requests = wanted(cfg, problems, tokenizer)
    have = {
        (name, row["problem"], row["sample"])
        for name in problems
        for path in (run.samples_path(name), run.shard_path(name, process))
        for row in read_rows(path)
    }
    mine = [
        request
        for place, request in enumerate(requests)
        if place % processes == process and (request.benchmark, request.problem.id, request.index) not in have
    ]
    if not mine:
        return
    engine = make_engine(run, cfg, tokenizer, len(requests[0].prompt))
    for completions in engine.decode(mine):
        write_rows(run, cfg, completions, process, engine.name)


def wanted(cfg: Resolved, problems: Problems, tokenizer: object) -> list[Request]:
    """Every request, the longest prompts first; the same list in every process."""
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
    golds = [request.problem.answer for request, *_ in completions]
    verdicts = grade_all([text for _, text, *_ in completions], golds, cfg["grading"])
    by_benchmark: dict[str, list[dict[str, object]]] = {}
    for (request, text, tokens, truncated), verdict in zip(completions, verdicts, strict=True):
        row = {
            "problem": request.problem.id, "sample": request.index, "seed": request.seed, "text": text,
            "answer": verdict.answer, "gold": request.problem.answer, "correct": verdict.correct,
            "reason": verdict.reason, "tokens": tokens, "truncated": truncated, "engine": engine,
        }  # fmt: skip
        by_benchmark.setdefault(request.benchmark, []).append(row)
    for benchmark, rows in by_benchmark.items():
        append_rows(run.shard_path(benchmark, process), rows)
