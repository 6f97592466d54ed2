"""A run's evaluation samples: gather the rows of eval/<benchmark>.jsonl, score them, and summarise the run. Without torch."""

import json
import math
from collections import Counter
from collections.abc import Sequence

from rlvr_sweeps.config.identity import digest, evaluation_spec
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import averaged_benchmarks, dial_values, is_trained
from rlvr_sweeps.config.verifiers import verifier_of
from rlvr_sweeps.evaluation.scores import (
    avg_at_k,
    majority_at_k,
    mean_of_benchmarks,
    mean_score,
    none_if_nan,
    pass_at,
    score_error,
    score_error_new_problems,
    standard_error,
    standard_error_new_problems,
)
from rlvr_sweeps.files import Row, read_object, read_rows, write_json, write_text
from rlvr_sweeps.grading.answers import canonical_form
from rlvr_sweeps.grading.grader import VERSION
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.rollouts import share_column

SAMPLE_KEYS = ("problem", "sample", "text", "answer", "gold", "correct", "reason", "tokens", "truncated")  # of a row
SMALLER_K = (1, 2, 4, 8, 16)  # the summary has Pass@ these numbers too, where they are smaller than k


def gather(run: Run, benchmark: str, ids: Sequence[str], k: int) -> set[tuple[str, int]]:
    """Merge the shards of several processes into one sorted file, and return the (problem, sample) pairs in it.

    Incomplete rows, rows of other problems, rows with an index ≥ k, and repeated pairs are left out.
    """
    index_of = {problem: index for index, problem in enumerate(ids)}
    rows: dict[tuple[str, int], Row] = {}
    shards = run.shard_paths(benchmark)
    for path in (run.samples_path(benchmark), *shards):
        for row in read_rows(path, *SAMPLE_KEYS):
            key = (row["problem"], row["sample"])
            if key[0] in index_of and key[1] < k:
                rows.setdefault(key, row)
    ordered = sorted(rows, key=lambda key: (index_of[key[0]], key[1]))
    write_text(run.samples_path(benchmark), "".join(json.dumps(rows[key]) + "\n" for key in ordered))
    for path in shards:
        path.unlink()
    return set(rows)


def score(rows: Sequence[Row], k: int, source: str) -> Row:
    """Return a benchmark's columns; `source` names the rows in the error.

    Raises RuntimeError unless the rows are exactly k samples of each problem.
    """
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    pairs = {(row["problem"], row["sample"]) for row in rows}
    if pairs != {(problem, index) for problem in problems for index in range(k)} or len(rows) != len(pairs) or not rows:
        raise RuntimeError(f"{source} does not hold exactly {k} samples of each of its {len(problems)} problems.")
    correct = list(right_by_problem(rows).values())
    columns: Row = averages(rows, correct, k) | {
        "pass": pass_at(correct, k, k), "majority": majority(rows), "k": k, "n": len(problems),
        "truncated_share": mean([row["truncated"] for row in rows]), "tokens_mean": mean([row["tokens"] for row in rows]),
    }  # fmt: skip
    columns |= {f"pass{smaller}": pass_at(correct, k, smaller) for smaller in SMALLER_K if smaller < k}
    reasons = Counter(row["reason"] for row in rows)
    return columns | {share_column(reason): count / len(rows) for reason, count in sorted(reasons.items())}


def averages(rows: Sequence[Row], correct: Sequence[int], k: int) -> Row:
    """Return Avg@k and its errors: of the scores where a reward function gave them, else of the correct samples."""
    if "score" not in rows[0]:
        return {
            "avg": avg_at_k(correct, k), "avg_se": none_if_nan(standard_error(correct, k)),
            "avg_se_new_problems": none_if_nan(standard_error_new_problems(correct, k)),
        }  # fmt: skip
    scores = list(scores_by_problem(rows).values())
    return {
        "avg": mean_score(scores), "avg_se": none_if_nan(score_error(scores)),
        "avg_se_new_problems": none_if_nan(score_error_new_problems(scores)),
    }  # fmt: skip


def scores_by_problem(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Return the scores of the samples of each problem, in the order of the rows."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row["problem"], []).append(float(row["score"]))
    return scores


def right_by_problem(rows: Sequence[Row]) -> dict[str, int]:
    """Return the number of correct samples of each problem, in the order of the rows."""
    right = dict.fromkeys((row["problem"] for row in rows), 0)
    for row in rows:
        right[row["problem"]] += bool(row["correct"])
    return right


def majority(rows: Sequence[Row]) -> float:
    """Return the share of problems whose most frequent answer is correct; all correct answers count as the same answer."""
    votes: dict[str, Counter[str]] = {}
    for row in rows:
        counts = votes.setdefault(row["problem"], Counter())
        if row["correct"]:
            counts["right"] += 1
        elif row["answer"] is not None:
            counts[f"wrong: {canonical_form(row['answer'])}"] += 1
    return majority_at_k([counts["right"] for counts in votes.values()], [wrong_votes(counts) for counts in votes.values()])


def wrong_votes(counts: Counter[str]) -> list[int]:
    """Return the number of votes of each wrong answer."""
    return [count for answer, count in counts.items() if answer != "right"]


def summarise(run: Run, cfg: Resolved) -> Row:
    """Return one flat row: the run's axes, training, each benchmark's scores, and the averages without held-out prompts.

    Write the number of correct samples of each problem beside the samples. Raises RuntimeError where a benchmark's samples are
    not exactly those that the configuration defines.
    """
    record = read_object(run.record_path) or {}
    parameters = record.get("parameters", {"trainable": 0, "base": None})
    steps = read_rows(run.metrics_path, "step", "reward_mean")
    reach_rows = read_rows(run.reach_path, "step", "reach")
    row: Row = {
        "run": run.name, "id": run.id, "model": cfg["model"]["name"], "peft": cfg["peft"]["name"],
        "method": cfg["peft"]["title"], "algo": cfg["algo"]["name"] if is_trained(cfg) else "none",
        **dial_values(cfg), "trainable": parameters["trainable"], "parameters": parameters["base"],
        "reward_first": mean_reward(steps[:10]), "reward_last": mean_reward(steps[-10:]),
        "steps_done": steps[-1]["step"] if steps else None,
        "stopped_early": (read_object(run.stopped_early_path) or {}).get("why"),
        "train_seconds": (run.marker("train") or {}).get("seconds"),
        "reach": reach_rows[-1]["reach"]["all"] if reach_rows else None,
        "bfloat16_error": reach_rows[-1].get("bfloat16_error", {}).get("all") if reach_rows else None,
        "update_kept": reach_rows[-1].get("update_kept", {}).get("all") if reach_rows else None,
        "evaluation": evaluation_spec(cfg), "grader": VERSION,
    }  # fmt: skip
    if not verifier_of(cfg).is_math:
        row["verifier"] = verifier_of(cfg).label()
    scored, right = {}, {}
    for name, source in cfg["benchmark"].items():
        rows = read_rows(run.samples_path(name), *SAMPLE_KEYS)
        scored[name] = score(rows, source["k"], str(run.samples_path(name)))
        if source["problems"] is not None and scored[name]["n"] != source["problems"]:
            raise RuntimeError(
                f"{run.samples_path(name)} has samples of {scored[name]['n']} problems; benchmark.{name}.problems is "
                f"{source['problems']}."
            )
        golds = digest({row["problem"]: row["gold"] for row in rows})
        right[name] = {"k": source["k"], "golds": golds, "right": right_by_problem(rows)}
        if "score" in rows[0]:
            right[name]["mean"] = {problem: mean(scores) for problem, scores in scores_by_problem(rows).items()}
        row |= {f"{name}/{column}": value for column, value in scored[name].items()}
    write_json(run.right_path, right)
    parts = [scored[name] for name in averaged_benchmarks(scored)]
    if parts:
        avg, se = mean_of_benchmarks(
            [s["avg"] for s in parts], [math.nan if s["avg_se"] is None else s["avg_se"] for s in parts]
        )
        row |= {"avg": avg, "avg_se": none_if_nan(se)}
        row |= {column: mean([s[column] for s in parts]) for column in ("pass", "majority", "truncated_share")}
        row["avg_over_samples"] = sum(s["avg"] * s["n"] * s["k"] for s in parts) / sum(s["n"] * s["k"] for s in parts)
    return row


def mean_reward(rows: Sequence[Row]) -> float | None:
    """Return the mean reward over rows of metrics.jsonl; None without rows."""
    return mean([row["reward_mean"] for row in rows]) if rows else None


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)
