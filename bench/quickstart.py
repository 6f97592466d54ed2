"""quickstart's six runs against the same six as plain TRL scripts, one after another and as many at once as there are cores.

    make bench          (every side gets one thread per run)
    make bench-sweep    twelve: two seeds of each

Prints wall-clock seconds, both ratios, and beside them what says that the work was the same: rewards and accuracies.
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
METHODS, OBJECTIVES = ("dora", "lora", "pissa"), ("dapo_released", "grpo")  # TRL alone has no dynamic sampling
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def plain(world: Path, out: Path, method: str, algo: str, seed: str) -> None:
    command = [sys.executable, ROOT / "bench/plain_trl.py", world, out, "--method", method, "--algo", algo, "--seed", seed]
    subprocess.run(command, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def all_plain(world: Path, folder: Path, at_once: int, seeds: Sequence[str]) -> float:
    """Seconds for the scripts."""
    folder.mkdir()
    start = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        points = itertools.product(METHODS, OBJECTIVES, seeds)
        list(pool.map(lambda point: plain(world, folder / f"{'-'.join(point)}.json", *point), points))
    return time.perf_counter() - start


def ours(folder: Path, seeds: Sequence[str]) -> float:
    """Seconds for the launch."""
    grid = [f"peft={','.join(METHODS)}", f"algo={','.join(OBJECTIVES)}", f"seed={','.join(seeds)}"]
    command = [sys.executable, "launch.py", "-m", *grid]
    start = time.perf_counter()
    subprocess.run([*command, f"runs_dir={folder}"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def outcomes(folder: Path) -> dict[str, tuple[float, float]]:
    """Mean reward over all steps, and mean accuracy over the tiers, by method, objective and seed."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", default=["42"])
    seeds = parser.parse_args().seeds
    cfg = offline_composer().point([]).cfg
    world = Path(locations.locate(cfg["model"]["path"], cfg["model"]["revision"])).parent
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        together = all_plain(world, here / "together", cores, seeds)
        alone, us = all_plain(world, here / "alone", 1, seeds), ours(here / "us", seeds)
        print(f"{time.strftime('%Y-%m-%d')}, {cores} cores")
        print(f"launch.py                      {us:6.0f} s")
        print(f"plain scripts, one by one      {alone:6.0f} s   {alone / us:.2f} times as long")
        print(f"plain scripts, {cores} at once       {together:6.0f} s   {together / us:.2f} times as long")
        print("\nmean reward, accuracy          ours           plain          plain again")
        columns = [outcomes(here / name) for name in ("us", "alone", "together")]
        for name in sorted(columns[0]):
            cells = [f"{column[name][0]:.3f}, {column[name][1]:.3f}" for column in columns]
            print(f"  {name:<28} " + "   ".join(cells))


if __name__ == "__main__":
    main()
