"""45 runs of the paper's six benchmarks compared with the first: the whole `rlvr compare` command, 10,000 draws.

python bench/comparing.py        the runs are made up; half a minute, most of it making them
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rlvr_sweeps.compose import offline_composer
from rlvr_sweeps.files import write_json
from rlvr_sweeps.run import Run
from rlvr_sweeps.samples import summarise

RUNS = 45


def make(composer, folder, seed, overrides=(), text=None):
    """A run with made-up samples: 7,248 rows, as many as the paper's evaluation has. `text(rng)` writes a completion."""
    cfg = composer.point(["model=r1_qwen_1_5b", "rollout=hf", f"seed={seed}", f"runs_dir={folder}", *overrides]).cfg
    run = Run.of(cfg)
    rng = np.random.default_rng(int(run.id, 16))
    run.prepare(cfg)
    for name, source in cfg["benchmark"].items():
        level = rng.beta(1, 1, source["problems"])
        rows = [
            {"problem": f"p{place}", "sample": index, "correct": bool(rng.random() < level[place]), "tokens": 9000,
             "truncated": False, "answer": str(index), "reason": "correct", "text": text(rng) if text else "", "gold": "1"}
            for place in range(source["problems"])
            for index in range(source["k"])
        ]  # fmt: skip
        run.samples_path(name).parent.mkdir(exist_ok=True)
        run.samples_path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = time.perf_counter()
    write_json(run.summary_path, summarise(run, cfg))
    return run, time.perf_counter() - start


def main():
    composer = offline_composer()
    with tempfile.TemporaryDirectory() as folder:
        made = [make(composer, Path(folder) / "runs", seed) for seed in range(RUNS)]
        samples = sum(
            len(run.samples_path(name).read_text().splitlines()) for run, _ in made[:1] for name in run.config()["benchmark"]
        )
        command = [sys.executable, "-m", "rlvr_sweeps.cli", "compare", "--json", *(str(run.path) for run, _ in made)]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        seconds = time.perf_counter() - start
        count = len(json.loads(done.stdout))
        print(f"{RUNS} runs of {samples:,} samples, {count} differences, 10,000 draws, one thread: {seconds:.1f} s")
        print(f"a run's summary from its samples: {np.median([spent for _, spent in made]):.2f} s")


if __name__ == "__main__":
    main()
