"""A report of 45 runs of the paper's six benchmarks, 7,248 samples each: the time of its parts, and what the page weighs.

python bench/reporting.py        the runs are made up; about two minutes, most of it making them
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from comparing import SEEDS, make

from rlvr_sweeps.config.compose import offline_composer
from rlvr_sweeps.config.sweeps import expand
from rlvr_sweeps.files import read_json, write_json, write_text
from rlvr_sweeps.reporting.differences.baselines import families
from rlvr_sweeps.reporting.rows import cells
from rlvr_sweeps.runs.reading import find_runs

ROWS = (
    "full", "lora", "lora rank=1", "lora rank=8", "dora", "adalora", "miss", "lora_fa", "vera", "lora_plus", "rslora", "milora",
    "pissa", "ia3", "ln_tuning",
)  # fmt: skip
JOINS = ("so", "then", "hence", "wait", "check", "let", "because", "we get", "but")
WORDS = [f"${{a}}{sign}{{b}}=$ {join} " for join in JOINS for sign in "+-*/"]
LONG = 200  # words of a completion in the mean: 2,000 characters


def completion(rng):
    """Random mathematics of random length, the answer at its end."""
    words = rng.integers(0, len(WORDS), max(5, int(rng.exponential(LONG))))
    return "".join(WORDS[word].format(a=word * 7 % 90, b=word * 13 % 70) for word in words) + "</think>\\boxed{1}"


def add_training(run):
    """What a trained run has beside its samples: 1,024 steps of metrics, its questions, an analysis."""
    cfg, rng = run.config(), np.random.default_rng(1)
    columns = ("reward_mean", "completion_tokens_mean", "rollout_s", "reward_s", "update_s", "entropy", "truncated_share")
    steps = [
        {"step": step, "sampled_groups": 16, **dict(zip(columns, rng.random(len(columns)).tolist(), strict=True))}
        for step in range(1, 1025)
    ]
    write_text(run.metrics_path, "".join(json.dumps(row) + "\n" for row in steps))
    questions = {
        name: {problem: [f"What is the number of {problem}? " * 8, "1"] for problem in entry["right"]}
        for name, entry in read_json(run.right_path).items()
    }
    write_json(run.questions_path, questions)
    write_json(run.analysis_path, {})
    run.finish("analyse", cfg, 1.0)


def processor_seconds():
    """Of ended child processes: what a busy machine does not change."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main():
    composer = offline_composer()
    with tempfile.TemporaryDirectory() as folder:
        runs_dir = Path(folder) / "runs"
        points = [point for row in ROWS for point in expand([f"peft={row} {SEEDS}"])]
        for place, point in enumerate(points):
            add_training(make(composer, runs_dir, point, place, completion)[0])
        size = sum(path.stat().st_size for path in runs_dir.rglob("*.jsonl"))
        start = time.process_time()
        compared, _ = families(cells(find_runs(runs_dir)))
        tables = time.process_time() - start
        count = sum(len(row) for family in compared for row in family.differences.values())
        before, start = processor_seconds(), time.perf_counter()
        command = [sys.executable, "-m", "rlvr_sweeps.cli", "report", str(runs_dir)]
        subprocess.run(command, capture_output=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        whole, computing = time.perf_counter() - start, processor_seconds() - before
        page = (runs_dir / "report.html").stat().st_size
        print(f"{len(points)} runs of 7,248 samples, {size / 1e6:,.0f} MB of them")
        print(f"{count} differences, 10,000 draws: {tables:.1f} s of one core")
        print(f"rlvr report: {computing:.1f} s of one core in {whole:.1f} s, a page of {page / 1e6:.2f} MB")
        if keep := os.environ.get("KEEP_PAGE"):
            write_text(Path(keep), (runs_dir / "report.html").read_text())


if __name__ == "__main__":
    main()
