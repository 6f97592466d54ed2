"""Measure the seconds of `launch.py --help`, of the plan of 1,000 points, and of `rlvr status` for 1,000 runs.

    make bench

For comparison with the plan, Hydra's own composition of the points is timed on a sample of them, because all take minutes.
"""

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from hydra import compose

from rlvr_sweeps.config.compose import offline_composer
from rlvr_sweeps.files import append_rows, write_json
from rlvr_sweeps.runs.directory import Run

ROOT = Path(__file__).resolve().parent.parent
AXES = {
    "peft": ["lora", "dora", "pissa", "rslora", "milora"],
    "algo": ["dapo", "grpo"],
    "rank": range(1, 11),
    "seed": range(10),
}

NUMBERS = {f"number_{index}": 0.123456789 / (index + 1) for index in range(28)}  # as many numbers as a row of metrics.jsonl has


def seconds(*arguments: str) -> float:
    """Return the seconds of a Python command in the root of the checkout."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def fill(folder: Path, points: list[list[str]]) -> None:
    """Write one run per point with the files that status reads; every third is lost at step 300 of its training."""
    composer = offline_composer()
    for number, overrides in enumerate(points):
        cfg = composer.point([*overrides, f"runs_dir={folder}"]).cfg
        run = Run.of(cfg)
        run.prepare(cfg)
        if number % 3 == 0:
            append_rows(run.metrics_path, [{"step": step, "reward_mean": 0.4, **NUMBERS} for step in range(1, 301)])
            run.log_event("start")
            run.log_event("train", resumed_from=None)
            continue
        write_json(run.record_path, {"parameters": {"trainable": 1, "base": 2}})
        write_json(run.merged_path / "config.json", {})
        run.finish("train", cfg, 1.0)
        write_json(run.summary_path, {"avg": 0.5, "avg_se": 0.01, "reward_last": 0.4})
        run.finish("evaluate", cfg, 1.0)
        write_json(run.analysis_path, {})
        run.finish("analyse", cfg, 1.0)


def points_of(axes: dict[str, Iterable[object]]) -> list[list[str]]:
    """Return the overrides of every point of a grid of axes."""
    return [[f"{key}={value}" for key, value in zip(axes, values, strict=True)] for values in itertools.product(*axes.values())]


def grid_of(axes: dict[str, Iterable[object]]) -> list[str]:
    """Return a grid of axes as overrides for `launch.py -m`."""
    return [f"{key}={','.join(map(str, values))}" for key, values in axes.items()]


def main() -> None:
    """Print the seconds of each command."""
    points, grid = points_of(AXES), grid_of(AXES)
    print(f"{time.strftime('%Y-%m-%d')}, {len(points)} points")
    print(f"launch.py --help                     {seconds('launch.py', '--help'):6.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        planned = seconds("launch.py", "-m", *grid, "plan=true", f"runs_dir={folder}")
        print(f"launch.py -m … plan=true             {planned:6.2f} s")
    offline_composer()
    start = time.perf_counter()
    sample = points[:: len(points) // 20]
    for overrides in sample:
        compose("config", overrides)
    hydra_seconds = (time.perf_counter() - start) / len(sample) * len(points)
    print(f"Hydra composes the same points       {hydra_seconds:6.2f} s (extrapolated from {len(sample)} points)")
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), points)
        print(f"rlvr status, a third of them lost    {seconds('-m', 'rlvr_sweeps.cli', 'status', folder):6.2f} s")


if __name__ == "__main__":
    main()
