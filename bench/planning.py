"""What a user waits for before anything runs: --help, the plan of 1,000 points, the status of 1,000 runs.

    make bench

Hydra's own composing of the same points is timed beside the plan, on a sample of them, since it takes minutes.
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

NUMBERS = {f"number_{index}": 0.123456789 / (index + 1) for index in range(28)}  # as many as a step's row holds


def seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def fill(folder: Path, points: list[list[str]]) -> None:
    """A thousand runs with the files that status reads: two of three finished, the third lost at step 300 of its training."""
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
    return [[f"{key}={value}" for key, value in zip(axes, values, strict=True)] for values in itertools.product(*axes.values())]


def grid_of(axes: dict[str, Iterable[object]]) -> list[str]:
    return [f"{key}={','.join(map(str, values))}" for key, values in axes.items()]


def main() -> None:
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
    own = (time.perf_counter() - start) / len(sample) * len(points)
    print(f"Hydra's composing of them, once      {own:6.2f} s (from {len(sample)} of them)")
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), points)
        print(f"rlvr status, a third unfinished      {seconds('-m', 'rlvr_sweeps.cli', 'status', folder):6.2f} s")


if __name__ == "__main__":
    main()
