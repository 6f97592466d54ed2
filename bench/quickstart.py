"""Compare one launch of quickstart's six runs with six plain TRL scripts, run one by one and one per core at the same time.

    make bench          six runs; every run and script has one thread
    make bench-sweep    twelve runs: two seeds of each

Prints wall-clock seconds and their ratios. Rewards and accuracies show that the launch and the scripts do equal work.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlvr_sweeps.assets import locations
from rlvr_sweeps.config.compose import offline_composer

ROOT = Path(__file__).resolve().parent.parent
METHODS, OBJECTIVES = ("dora", "lora", "pissa"), ("dapo_released", "grpo")  # TRL has no dynamic sampling
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_script(world: Path, out: Path, method: str, algo: str, seed: str) -> None:
    """Run a plain TRL script that writes its result to `out`."""
    command = [sys.executable, ROOT / "bench/plain_trl.py", world, out, "--method", method, "--algo", algo, "--seed", seed]
    subprocess.run(command, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def scripts_seconds(world: Path, folder: Path, workers: int, seeds: Sequence[str]) -> float:
    """Return the seconds of all scripts, `workers` at the same time."""
    folder.mkdir()
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        points = itertools.product(METHODS, OBJECTIVES, seeds)
        list(pool.map(lambda point: run_script(world, folder / f"{'-'.join(point)}.json", *point), points))
    return time.perf_counter() - start


def launch_seconds(folder: Path, seeds: Sequence[str]) -> float:
    """Return the seconds of one launch of all runs."""
    grid = [f"peft={','.join(METHODS)}", f"algo={','.join(OBJECTIVES)}", f"seed={','.join(seeds)}"]
    command = [sys.executable, "launch.py", "-m", *grid]
    start = time.perf_counter()
    subprocess.run([*command, f"runs_dir={folder}"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def outcomes(folder: Path) -> dict[str, tuple[float, float]]:
    """Return the mean reward over all steps and the mean accuracy over the tiers, by method, objective and seed."""
    results = {}
    for path in folder.glob("*.json"):
        result = json.loads(path.read_text())
        results[path.stem] = (statistics.fmean(result["rewards"]), statistics.fmean(result["averages"].values()))
    for path in folder.glob("*/summary.json"):
        summary = json.loads(path.read_text())
        rewards = [json.loads(line)["reward_mean"] for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        results[f"{summary['peft']}-{summary['algo']}-{summary['seed']}"] = (statistics.fmean(rewards), summary["avg"])
    return results


def main() -> None:
    """Print the seconds, the ratios, and the rewards and accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", default=["42"])
    seeds = parser.parse_args().seeds
    cfg = offline_composer().point([]).cfg
    world = Path(locations.locate(cfg["model"]["path"], cfg["model"]["revision"])).parent
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        parallel_s = scripts_seconds(world, root / "parallel", cores, seeds)
        serial_s, launch_s = scripts_seconds(world, root / "serial", 1, seeds), launch_seconds(root / "launch", seeds)
        print(f"{time.strftime('%Y-%m-%d')}, {cores} cores")
        print(f"launch.py                      {launch_s:6.0f} s")
        print(f"plain scripts, one by one      {serial_s:6.0f} s   {serial_s / launch_s:.2f} times as long")
        print(f"plain scripts, {cores} at once       {parallel_s:6.0f} s   {parallel_s / launch_s:.2f} times as long")
        print(f"\nmean reward, accuracy          launch.py      one by one     {cores} at once")
        columns = [outcomes(root / name) for name in ("launch", "serial", "parallel")]
        for name in sorted(columns[0]):
            cells = [f"{column[name][0]:.3f}, {column[name][1]:.3f}" for column in columns]
            print(f"  {name:<28} " + "   ".join(cells))


if __name__ == "__main__":
    main()
