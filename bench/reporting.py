"""Measure `rlvr report` on 45 runs of the paper's six benchmarks with 7,248 samples each: processor time, and size of the page.

python bench/reporting.py        the samples are random; takes about two minutes, most of it to write them
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
from comparing import SEEDS, make_run

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
CONNECTIVES = ("so", "then", "hence", "wait", "check", "let", "because", "we get", "but")
PHRASES = [f"${{a}}{sign}{{b}}=$ {connective} " for connective in CONNECTIVES for sign in "+-*/"]
MEAN_PHRASES = 200  # of a completion: 2,000 characters


def completion(rng):
    """Return random formulas of random length with an answer at the end."""
    indices = rng.integers(0, len(PHRASES), max(5, int(rng.exponential(MEAN_PHRASES))))
    return "".join(PHRASES[index].format(a=index * 7 % 90, b=index * 13 % 70) for index in indices) + "</think>\\boxed{1}"


def add_training(run):
    """Write the other files of a finished run: 1,024 steps of metrics, the questions, an analysis."""
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
    """Return the processor seconds of ended child processes, which depend little on other load."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main():
    """Write the runs, and print the processor seconds of the differences and of the report, and the size of the page."""
    composer = offline_composer()
    with tempfile.TemporaryDirectory() as folder:
        runs_dir = Path(folder) / "runs"
        points = [point for row in ROWS for point in expand([f"peft={row} {SEEDS}"])]
        for index, point in enumerate(points):
            add_training(make_run(composer, runs_dir, point, index, completion)[0])
        size = sum(path.stat().st_size for path in runs_dir.rglob("*.jsonl"))
        start = time.process_time()
        compared_families, _ = families(cells(find_runs(runs_dir)))
        differences_s = time.process_time() - start
        count = sum(len(row) for family in compared_families for row in family.differences.values())
        before, start = processor_seconds(), time.perf_counter()
        command = [sys.executable, "-m", "rlvr_sweeps.cli", "report", str(runs_dir)]
        subprocess.run(command, capture_output=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        report_s, processor_s = time.perf_counter() - start, processor_seconds() - before
        page_bytes = (runs_dir / "report.html").stat().st_size
        print(f"{len(points)} runs of 7,248 samples, {size / 1e6:,.0f} MB of .jsonl files")
        print(f"{count} differences, 10,000 draws: {differences_s:.1f} s of processor time")
        print(f"rlvr report: {processor_s:.1f} s of processor time in {report_s:.1f} s, a page of {page_bytes / 1e6:.2f} MB")
        if copy := os.environ.get("KEEP_PAGE"):  # path for a copy of the page
            write_text(Path(copy), (runs_dir / "report.html").read_text())


if __name__ == "__main__":
    main()
