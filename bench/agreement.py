"""Compare runs of this project and plain TRL scripts in distribution: LoRA under GRPO, the same seeds for both.

    python bench/agreement.py [SEEDS]      (8 by default: about eight minutes on two cores)

The same seed draws different samples in the two programs, so single runs differ. Means over seeds are compared by Welch's t.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from quickstart import ENVIRONMENT, ROOT

from rlvr_sweeps.assets import locations
from rlvr_sweeps.config.compose import offline_composer

Result = tuple[float, float]  # mean reward over the steps, mean accuracy over the tiers


def run_script(world: Path, folder: Path, seed: int) -> Result:
    """Return the result of a plain TRL script."""
    out = folder / f"{seed}.json"
    command = [
        sys.executable,
        ROOT / "bench/plain_trl.py",
        world,
        out,
        "--method",
        "lora",
        "--algo",
        "grpo",
        "--seed",
        str(seed),
    ]
    subprocess.run(command, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    result = json.loads(out.read_text())
    return statistics.fmean(result["rewards"]), statistics.fmean(result["averages"].values())


def run_launch(folder: Path, seeds: list[int]) -> list[Result]:
    """Return the results of one launch of all seeds."""
    overrides = [f"seed={','.join(map(str, seeds))}", f"runs_dir={folder}"]
    command = [sys.executable, "launch.py", "-m", "peft=lora", "algo=grpo", *overrides]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    results = []
    for path in folder.glob("*/summary.json"):
        rows = (path.parent / "metrics.jsonl").read_text().splitlines()
        results.append((statistics.fmean(json.loads(row)["reward_mean"] for row in rows), json.loads(path.read_text())["avg"]))
    return results


def print_comparison(label: str, launched: list[float], plain: list[float]) -> None:
    """Print both means over seeds with their standard errors, and Welch's t."""
    errors = [statistics.stdev(values) / math.sqrt(len(values)) for values in (launched, plain)]
    means = [statistics.fmean(values) for values in (launched, plain)]
    t = (means[0] - means[1]) / math.hypot(*errors)
    print(f"{label:<22} launch.py {means[0]:.4f} ± {errors[0]:.4f}   plain TRL {means[1]:.4f} ± {errors[1]:.4f}   t = {t:+.2f}")


def main() -> None:
    """Run both programs with all seeds, and print the comparison."""
    seeds = list(range(1, int(sys.argv[1] if len(sys.argv) > 1 else 8) + 1))
    cfg = offline_composer().point([]).cfg
    world = Path(locations.locate(cfg["model"]["path"], cfg["model"]["revision"])).parent
    with tempfile.TemporaryDirectory() as scratch:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            plain = list(pool.map(lambda seed: run_script(world, Path(scratch), seed), seeds))
        launched = run_launch(Path(scratch) / "runs", seeds)
    print(f"{time.strftime('%Y-%m-%d')}, LoRA, GRPO, {len(seeds)} seeds each")
    print_comparison("mean training reward", [reward for reward, _ in launched], [reward for reward, _ in plain])
    print_comparison("accuracy of evaluation", [accuracy for _, accuracy in launched], [accuracy for _, accuracy in plain])


if __name__ == "__main__":
    main()
