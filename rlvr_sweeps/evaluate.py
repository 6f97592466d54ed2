"""The evaluate stage: k samples of every problem, all of them kept, and the run's summary."""

import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlvr_sweeps.data import Problem, load_problems, prompt_ids
from rlvr_sweeps.files import read_json, read_rows, write_json, write_text
from rlvr_sweeps.grading import grade
from rlvr_sweeps.identity import Resolved, evaluation_spec, is_trained
from rlvr_sweeps.run import Run
from rlvr_sweeps.sampling import sample, seed_of
from rlvr_sweeps.scores import avg_at_k, mean_of_benchmarks, pass_at, standard_error, standard_error_new_problems
from rlvr_sweeps.train import load_model


@dataclass(frozen=True)
class Request:
    """One completion to make."""

    benchmark: str
    problem: Problem
    index: int  # sample j of k
    prompt: list[int]


def evaluate(run: Run, cfg: Resolved) -> None:
    """Sample what is missing, grade it, and write summary.json. Samples of another request are set aside first."""
    spec, marker = evaluation_spec(cfg), run.path / "eval" / "spec.json"
    trained = (read_json(run.stage_path("train")) or {}).get("finished")
    if read_json(marker) != {"evaluation": spec, "trained": trained}:
        run.set_aside([run.path / "eval", run.summary_path], "evaluated again, for another request")
        write_json(marker, {"evaluation": spec, "trained": trained})
    model, tokenizer = load_policy(run, cfg)
    problems = {name: load_problems(source) for name, source in cfg["benchmark"].items()}
    missing = []
    for name, rows in problems.items():
        have = known_samples(run, name, {problem.id for problem in rows}, cfg["benchmark"][name]["k"])
        for problem in rows:
            prompt = prompt_ids(tokenizer, problem, cfg["model"]["system_prompt"])
            missing += [
                Request(name, problem, index, prompt)
                for index in range(cfg["benchmark"][name]["k"])
                if (problem.id, index) not in have
            ]
    answer(run, cfg, model, tokenizer, missing)
    write_json(run.summary_path, summarise(run, cfg, problems))


def load_policy(run: Run, cfg: Resolved) -> tuple[Any, Any]:
    """The merged model of a trained run, the base for peft=none; on the GPU where there is one."""
    if is_trained(cfg):
        tokenizer = AutoTokenizer.from_pretrained(run.merged_path)
        model = AutoModelForCausalLM.from_pretrained(run.merged_path, dtype=torch.float32)
    else:
        model, tokenizer = load_model(cfg)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def known_samples(run: Run, benchmark: str, ids: set[str], k: int) -> set[tuple[str, int]]:
    """(problem, sample) pairs already there; the file is rewritten without rows that are torn or were not asked."""
    rows, seen = [], set()
    for row in read_rows(run.samples_path(benchmark)):
        key = (row["problem"], row["sample"])
        if key[0] in ids and key[1] < k and key not in seen:
            seen.add(key)
            rows.append(row)
    write_text(run.samples_path(benchmark), "".join(json.dumps(row) + "\n" for row in rows))
    return seen


def answer(run: Run, cfg: Resolved, model: Any, tokenizer: Any, requests: list[Request]) -> None:
    """Decode the requests in batches of similar prompts and append each batch's rows to its benchmark's file."""
    settings = cfg["evaluation"]
    requests = sorted(requests, key=lambda request: -len(request.prompt))
    for start in range(0, len(requests), settings["batch_size"]):
        batch = requests[start : start + settings["batch_size"]]
        seeds = [seed_of(settings["seed"], request.problem.id, request.index) for request in batch]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=cfg["model"]["autocast_bf16"]):
            completions = sample(
                model, [request.prompt for request in batch], seeds, max_tokens=settings["max_tokens"],
                temperature=settings["temperature"], top_p=settings["top_p"], pad_id=tokenizer.pad_token_id,
                end_ids=end_ids(model, tokenizer),
            )  # fmt: skip
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        lines: dict[str, list[str]] = {}
        for request, seed, ids, text in zip(batch, seeds, completions, texts, strict=True):
            verdict = grade(text, request.problem.answer)
            row = {
                "problem": request.problem.id, "sample": request.index, "seed": seed, "text": text,
                "answer": verdict.answer, "gold": request.problem.answer, "correct": verdict.correct,
                "reason": verdict.reason, "tokens": len(ids), "truncated": ids[-1] not in end_ids(model, tokenizer),
            }  # fmt: skip
            lines.setdefault(request.benchmark, []).append(json.dumps(row) + "\n")
        for benchmark, rows in lines.items():
            with run.samples_path(benchmark).open("a") as file:
                file.writelines(rows)


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    stated = model.generation_config.eos_token_id
    ids = stated if isinstance(stated, list) else [stated]
    return sorted({*(token for token in ids if token is not None), tokenizer.eos_token_id})


def summarise(run: Run, cfg: Resolved, problems: dict[str, list[Problem]]) -> dict[str, Any]:
    """One flat row: the run's axes, what it trained, each benchmark's scores, the overall averages."""
    record = read_json(run.record_path) or {}
    parameters = record.get("parameters", {"trainable": 0, "base": None})
    steps = read_rows(run.metrics_path)
    reached = read_rows(run.reach_path)
    row: dict[str, Any] = {
        "run": run.name, "id": run.id, "model": cfg["model"]["name"], "peft": cfg["peft"]["name"],
        "method": cfg["peft"]["title"], "algo": cfg["algo"]["name"] if is_trained(cfg) else "none",
        **axes(cfg), "trainable": parameters["trainable"], "parameters": parameters["base"],
        "reward_first": mean_reward(steps[:10]), "reward_last": mean_reward(steps[-10:]),
        "train_seconds": (read_json(run.stage_path("train")) or {}).get("seconds"),
        "reach": reached[-1]["reach"]["all"] if reached else None,
        "evaluation": evaluation_spec(cfg), "finished": time.time(),
    }  # fmt: skip
    scored = {name: score(run, name, rows, cfg["benchmark"][name]["k"]) for name, rows in problems.items()}
    for name, columns in scored.items():
        row |= {f"{name}/{column}": value for column, value in columns.items()}
    if scored:
        errors = [math.nan if s["avg_se"] is None else s["avg_se"] for s in scored.values()]
        avg, se = mean_of_benchmarks([s["avg"] for s in scored.values()], errors)
        row |= {"avg": avg, "avg_se": none_if_nan(se), "pass": sum(s["pass"] for s in scored.values()) / len(scored)}
        row["truncated_share"] = sum(s["truncated_share"] for s in scored.values()) / len(scored)
    return row


def axes(cfg: Resolved) -> dict[str, Any]:
    """The dials this run read; None where its method has no such dial."""
    if not is_trained(cfg):
        return dict.fromkeys(("rank", "alpha", "dropout", "lr", "batch_size", "steps", "seed"))
    config = cfg["peft"]["config"]
    dropout = next((value for key, value in config.items() if key.endswith("dropout")), None)
    method = {"rank": config.get("r", config.get("init_r")), "alpha": config.get("lora_alpha"), "dropout": dropout}
    return method | {key: cfg[key] for key in ("lr", "batch_size", "steps", "seed")}


def mean_reward(rows: list[dict[str, Any]]) -> float | None:
    return sum(row["reward_mean"] for row in rows) / len(rows) if rows else None


def score(run: Run, benchmark: str, problems: list[Problem], k: int) -> dict[str, Any]:
    """A benchmark's columns, from exactly k samples of each problem."""
    rows = read_rows(run.samples_path(benchmark))
    counts = Counter(row["problem"] for row in rows)
    if any(counts[problem.id] != k for problem in problems) or len(rows) != k * len(problems):
        raise RuntimeError(
            f"{run.samples_path(benchmark)} does not hold exactly {k} samples of each of {len(problems)} problems"
        )
    right = Counter(row["problem"] for row in rows if row["correct"])
    correct = [right[problem.id] for problem in problems]
    columns: dict[str, Any] = {
        "avg": avg_at_k(correct, k), "avg_se": none_if_nan(standard_error(correct, k)),
        "avg_se_new_problems": none_if_nan(standard_error_new_problems(correct, k)),
        "pass": pass_at(correct, k, k), "k": k, "n": len(problems),
        "truncated_share": sum(row["truncated"] for row in rows) / len(rows),
        "tokens_mean": sum(row["tokens"] for row in rows) / len(rows),
    }  # fmt: skip
    columns |= {f"pass{fewer}": pass_at(correct, k, fewer) for fewer in (1, 2, 4, 8, 16) if fewer < k}
    return columns


def none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
