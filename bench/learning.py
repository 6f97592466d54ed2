"""Print what each trained run gained over its base model, and how far its reward fell from its best level to its end.

    python launch.py -m model=tiny,tiny_1 peft=none,lora,dora algo=grpo,dapo seed=42,43,44 runs_dir=FOLDER
    python bench/learning.py FOLDER

The level of the reward is its mean over the last WINDOW steps. Its gain is the last level minus the reward of the first step,
which is the base model's. A step has few problems, whose tiers differ in difficulty: a short window shows which problems were
drawn, not what the model can do.
"""

import argparse
import statistics
from pathlib import Path

from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import Run, all_runs


def levels(run: Run, window: int) -> list[float]:
    """Return the mean reward of every `window` steps in a row."""
    rewards = [row["reward_mean"] for row in read_rows(run.metrics_path)]
    return [statistics.fmean(rewards[end - window : end]) for end in range(window, len(rewards) + 1)]


def main() -> None:
    """Print a line per trained run, and the least gain and the largest fall over all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the runs, with the base models' (peft=none)")
    parser.add_argument("--window", type=int, default=20, help="steps")
    options = parser.parse_args()
    runs = [(run, run.config(), read_json(run.summary_path)) for run in all_runs(options.runs) if run.summary_path.exists()]
    bases = {cfg["model"]["name"]: summary["avg"] for _, cfg, summary in runs if cfg["peft"]["name"] == "none"}
    gains, reward_gains, falls = [], [], []
    print(f"{'run':<32} seed  accuracy  gain   reward  gain  fall      (points; reward over {options.window} steps)")
    for run, cfg, summary in runs:
        if cfg["peft"]["name"] == "none":
            continue
        means = levels(run, options.window)
        start = read_rows(run.metrics_path)[0]["reward_mean"]
        gain, fall = 100 * (summary["avg"] - bases[cfg["model"]["name"]]), 100 * (max(means) - means[-1])
        gains.append(gain)
        reward_gains.append(100 * (means[-1] - start))
        falls.append(fall)
        print(
            f"{run.name:<32} {cfg['seed']:>4}  {100 * summary['avg']:8.1f}  {gain:4.1f}  {100 * means[-1]:7.1f}  "
            f"{reward_gains[-1]:4.1f}  {fall:4.1f}"
        )
    print(f"least gain: accuracy {min(gains):.1f}, reward {min(reward_gains):.1f}; largest fall of the reward {max(falls):.1f}")


if __name__ == "__main__":
    main()
