"""Compare a training step of SmolLM2-135M with one of plain TRL with TRL's defaults: LoRA and DoRA, 64 completions, on the CPU.

    python bench/real.py [--steps 4] [--bfloat16]        about forty minutes on two cores; needs `make smollm2`

`--bfloat16` adds a run of this project with model.autocast_bf16=true. Each side has the whole machine, one after another:
launch.py gives its one run all cores, and the script has torch's default number of threads. Both train the same method on the
same questions with GRPO in float32, G = 8. Completions are limited to 64 and to 128 tokens. TRL's defaults include gradient
checkpointing and eight completions per forward pass. Medians leave out the first step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rlvr_sweeps.assets.locations import locate
from rlvr_sweeps.assets.problems import load_problems
from rlvr_sweeps.config.compose import offline_composer

ROOT = Path(__file__).resolve().parent.parent
RECIPE = [  # with TRL's temperature and without a length penalty, so that completions are as long as the script's
    "model=smollm2_135m", "algo=grpo", "algo.overlong_buffer=0", "rollout.temperature=1", "batch_size=64",
    "training.save_every=1000", "analysis=none", "signal_check=off",
]  # fmt: skip
ONE_PROBLEM = ["data.test_size=1", "benchmark.reasoning_gym.k=1"]  # the shortest evaluation


def make_world(folder: Path) -> None:
    """Write the script's folder: the model of the recipe as model/, and its training problems."""
    cfg = offline_composer().point([*RECIPE, *ONE_PROBLEM]).cfg
    (folder / "model").symlink_to(locate(cfg["model"]["path"], cfg["model"]["revision"]))
    rows = [{"question": problem.question, "answer": problem.answer} for problem in load_problems(cfg["data"])]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def launched(folder: Path, method: str, tokens: int, steps: int, bfloat16: bool = False) -> dict[str, Any]:
    """Return seconds and tokens of the steps of a run of this project."""
    runs = Path(folder, f"runs-{tokens}{'-bfloat16' if bfloat16 else ''}")
    overrides = [f"peft={method}", f"rollout.max_tokens={tokens}", f"steps={steps}", f"runs_dir={runs}"]
    overrides.append(f"model.autocast_bf16={str(bfloat16).lower()}")
    command = [sys.executable, "launch.py", *RECIPE, *ONE_PROBLEM, *overrides]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    (path,) = runs.glob(f"*-{method}-*/metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    phases = ("rollout_s", "reward_s", "logprobs_s", "update_s", "rest_s")
    seconds = [sum(row[name] for name in phases) for row in rows]
    return {"seconds": seconds, "tokens": [row["completion_tokens_mean"] for row in rows]}


def scripted(folder: Path, method: str, tokens: int, steps: int) -> dict[str, Any]:
    """Return seconds and tokens of the steps of the plain TRL script."""
    out = folder / f"{method}-{tokens}.json"
    command = [sys.executable, ROOT / "bench/plain_trl.py", folder, out, "--method", method, "--algo", "grpo", "--lr", "2e-4"]
    limits = ["--steps", str(steps), "--tokens", str(tokens), "--per-device", "8"]
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    subprocess.run([*command, *limits], check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def main() -> None:
    """Print the seconds per step of both sides, and their ratio, for each method and limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--methods", nargs="+", default=["lora", "dora"], choices=["lora", "dora"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--bfloat16", action="store_true", help="also measure model.autocast_bf16=true")
    options = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, {len(os.sched_getaffinity(0))} cores")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_world(folder)
        for tokens in options.tokens:
            for method in options.methods:
                sides = {"launch.py": launched(folder, method, tokens, options.steps)}
                if options.bfloat16:
                    sides["launch.py, bfloat16"] = launched(folder, method, tokens, options.steps, bfloat16=True)
                sides["plain TRL"] = scripted(folder, method, tokens, options.steps)
                print(f"{method}, at most {tokens} tokens", flush=True)
                own = statistics.median(sides["launch.py"]["seconds"][1:])
                for name, side in sides.items():
                    seconds, mean = (statistics.median(side[key][1:]) for key in ("seconds", "tokens"))
                    ratio = f"{seconds / own:.2f} times as long"
                    print(f"  {name:20} {seconds:6.1f} s ({mean:.0f} tokens each)   {ratio}", flush=True)


if __name__ == "__main__":
    main()
