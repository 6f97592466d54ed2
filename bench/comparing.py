"""Measure `rlvr compare` and Table 3 on 45 runs of the paper's six benchmarks, with three seeds and 10,000 bootstrap draws.

python bench/comparing.py        the samples are random; takes a minute, most of it to write them
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rlvr_sweeps.config.compose import offline_composer
from rlvr_sweeps.config.sweeps import expand, load_product
from rlvr_sweeps.evaluation.samples import summarise
from rlvr_sweeps.files import write_json
from rlvr_sweeps.runs.directory import Run

MODEL = ["model=r1_qwen_1_5b", "rollout=hf"]
SEEDS = "seed=42,43,44"
FURTHER_SEEDS = "peft=lora seed=45,46,47,48,49"  # five further runs, 45 in all


def make_run(composer, folder, overrides, index, text=None):
    """Write a finished run with 7,248 random samples, the number of the paper's evaluation.

    `index` is the number of the run; later ones are more accurate. `text(rng)` returns a completion. Returns the run, and the
    seconds that its summary took.
    """
    cfg = composer.point([*MODEL, *overrides, f"runs_dir={folder}"]).cfg
    run, rng = Run.of(cfg), np.random.default_rng(index)
    run.prepare(cfg)
    for number, (name, source) in enumerate(cfg["benchmark"].items()):
        levels = np.random.default_rng(number).beta(0.7, 1, source["problems"]) ** (1.2 - 0.02 * (index // 3))
        rows = [
            {"problem": f"p{problem}", "sample": sample, "correct": bool(rng.random() < levels[problem]), "tokens": 9000,
             "truncated": False, "answer": str(sample), "reason": "correct", "text": text(rng) if text else "", "gold": "1"}
            for problem in range(source["problems"])
            for sample in range(source["k"])
        ]  # fmt: skip
        run.samples_path(name).parent.mkdir(exist_ok=True)
        run.samples_path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(run.record_path, {"parameters": {"trainable": 1, "base": 2}})
    write_json(run.merged_path / "config.json", {})
    run.finish("train", cfg, 1.0)
    start = time.perf_counter()
    write_json(run.summary_path, summarise(run, cfg))
    summary_seconds = time.perf_counter() - start
    run.finish("evaluate", cfg, 1.0)
    return run, summary_seconds


def seconds_of(*arguments):
    """Return the seconds of an `rlvr` command on one thread, and its output."""
    command = [sys.executable, "-m", "rlvr_sweeps.cli", *arguments]
    start = time.perf_counter()
    process = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - start, process.stdout


def main(folder):
    """Write the runs into `folder`, and print the seconds of both commands and of a summary."""
    composer = offline_composer()
    product = load_product("table3", "r1_qwen_1_5b", composer)
    trained = [row.overrides for row in product.rows if row.overrides != ("peft=none",)]
    points = [
        ("peft=none",),
        *(point for row in trained for point in expand([" ".join([*row, SEEDS])])),
        *expand([FURTHER_SEEDS]),
    ]
    runs, summary_seconds = zip(
        *(make_run(composer, Path(folder) / "runs", point, index) for index, point in enumerate(points)), strict=True
    )
    names = list(runs[0].config()["benchmark"])
    samples = sum(len(runs[0].samples_path(name).read_text().splitlines()) for name in names)
    seconds, text = seconds_of("compare", "--json", *(str(run.path) for run in runs))
    count = len(json.loads(text))
    print(f"{len(runs)} runs of {samples:,} samples, {count} differences, 10,000 draws, one thread: {seconds:.1f} s")
    seconds, _ = seconds_of("table", "3", *MODEL, SEEDS, f"runs_dir={folder}/runs", "--out", f"{folder}/results")
    print(f"Table 3 of {len(points) - 5} of these runs, in every format: {seconds:.1f} s")
    print(f"summary of one run from its samples: {np.median(summary_seconds):.2f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
