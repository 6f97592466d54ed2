"""Do our runs and plain TRL scripts agree in distribution? LoRA under GRPO, the same seeds on both sides.

    python bench/agreement.py [SEEDS]      (8 by default: about eight minutes on two cores)

Seeds draw different samples on the two sides, so single runs differ; what is compared is the mean over seeds, by Welch's t.
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


def plain(world: Path, folder: Path, seed: int) -> tuple[float, float]:
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


def ours(folder: Path, seeds: list[int]) -> list[tuple[float, float]]:
    overrides = [f"seed={','.join(map(str, seeds))}", f"runs_dir={folder}"]
    command = [sys.executable, "launch.py", "-m", "peft=lora", "algo=grpo", *overrides]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    results = []
    for path in folder.glob("*/summary.json"):
        rows = (path.parent / "metrics.jsonl").read_text().splitlines()
        results.append((statistics.fmean(json.loads(row)["reward_mean"] for row in rows), json.loads(path.read_text())["avg"]))
    return results


def compare(name: str, us: list[float], them: list[float]) -> None:
    errors = [statistics.stdev(values) / math.sqrt(len(values)) for values in (us, them)]
    means = [statistics.fmean(values) for values in (us, them)]
    t = (means[0] - means[1]) / math.hypot(*errors)
    print(f"{name:<22} ours {means[0]:.4f} ± {errors[0]:.4f}   plain {means[1]:.4f} ± {errors[1]:.4f}   t = {t:+.2f}")


def main() -> None:
    seeds = list(range(1, int(sys.argv[1] if len(sys.argv) > 1 else 8) + 1))
    cfg = offline_composer().point([]).cfg
    world = Path(locations.locate(cfg["model"]["path"], cfg["model"]["revision"])).parent
    with tempfile.TemporaryDirectory() as scratch:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            them = list(pool.map(lambda seed: plain(world, Path(scratch), seed), seeds))
        us = ours(Path(scratch) / "runs", seeds)
    print(f"{time.strftime('%Y-%m-%d')}, LoRA, GRPO, {len(seeds)} seeds each")
    compare("mean training reward", [run[0] for run in us], [run[0] for run in them])
    compare("accuracy afterwards", [run[1] for run in us], [run[1] for run in them])


if __name__ == "__main__":
    main()
