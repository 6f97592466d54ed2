"""45 runs of the paper's six benchmarks: compared with the first, and as Table 3 with three seeds; 10,000 draws each.

python bench/comparing.py        the runs are made up; a minute, most of it making them
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
MORE = "peft=lora seed=45,46,47,48,49"  # to make it 45


def make(composer, folder, overrides, place, text=None):
    """A finished run with 7,248 made-up samples, as many as the paper's evaluation has; `text(rng)` writes a completion."""
    cfg = composer.point([*MODEL, *overrides, f"runs_dir={folder}"]).cfg
    run, rng = Run.of(cfg), np.random.default_rng(place)
    run.prepare(cfg)
    for number, (name, source) in enumerate(cfg["benchmark"].items()):
        levels = np.random.default_rng(number).beta(0.7, 1, source["problems"]) ** (1.2 - 0.02 * (place // 3))
        rows = [
            {"problem": f"p{problem}", "sample": index, "correct": bool(rng.random() < levels[problem]), "tokens": 9000,
             "truncated": False, "answer": str(index), "reason": "correct", "text": text(rng) if text else "", "gold": "1"}
            for problem in range(source["problems"])
            for index in range(source["k"])
        ]  # fmt: skip
        run.samples_path(name).parent.mkdir(exist_ok=True)
        run.samples_path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(run.record_path, {"parameters": {"trainable": 1, "base": 2}})
    write_json(run.merged_path / "config.json", {})
    run.finish("train", cfg, 1.0)
    start = time.perf_counter()
    write_json(run.summary_path, summarise(run, cfg))
    spent = time.perf_counter() - start
    run.finish("evaluate", cfg, 1.0)
    return run, spent


def seconds_of(*arguments):
    """Seconds of a whole `rlvr` command on one thread, and what it printed."""
    command = [sys.executable, "-m", "rlvr_sweeps.cli", *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - start, done.stdout


def main(folder):
    composer = offline_composer()
    product = load_product("table3", "r1_qwen_1_5b", composer)
    trained = [row.overrides for row in product.rows if row.overrides != ("peft=none",)]
    points = [("peft=none",), *(point for row in trained for point in expand([" ".join([*row, SEEDS])])), *expand([MORE])]
    made = [make(composer, Path(folder) / "runs", point, place) for place, point in enumerate(points)]
    names = list(made[0][0].config()["benchmark"])
    samples = sum(len(made[0][0].samples_path(name).read_text().splitlines()) for name in names)
    seconds, text = seconds_of("compare", "--json", *(str(run.path) for run, _ in made))
    count = len(json.loads(text))
    print(f"{len(made)} runs of {samples:,} samples, {count} differences, 10,000 draws, one thread: {seconds:.1f} s")
    seconds, text = seconds_of("table", "3", *MODEL, SEEDS, f"runs_dir={folder}/runs", "--out", f"{folder}/results")
    print(f"Table 3 of {len(points) - 5} of them, in every format: {seconds:.1f} s")
    print(f"a run's summary from its samples: {np.median([spent for _, spent in made]):.2f} s")
    return text


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
