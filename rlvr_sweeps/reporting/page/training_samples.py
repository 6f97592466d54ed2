"""Choose completions of the training for the page: for each run, those of a few steps from the first to the last."""

from collections.abc import Sequence
from typing import Any

from rlvr_sweeps.files import Row, read_rows
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.rollouts import reason_shares, without_middle

ROLLOUT_KEYS = ("step", "prompt", "gold", "text", "correct", "reason", "tokens", "truncated")  # of a row of rollouts.jsonl
MAX_STEPS = 6  # of each run, fewer where the runs are many
CHARACTERS = 1500  # of a prompt or a completion
BUDGET = 600_000  # characters of all runs


def training_samples(labelled: Sequence[tuple[Run, str]]) -> list[dict[str, Any]]:
    """Return, for each run with a rollouts.jsonl, its label and its chosen steps with reward, reasons and completions."""
    runs = [
        (label, read_rows(run.rollouts_path, *ROLLOUT_KEYS), read_rows(run.metrics_path, "step", "reward_mean"))
        for run, label in labelled
    ]
    for count in range(MAX_STEPS, 0, -1):
        chosen = [(label, steps_of(rows, metrics, count)) for label, rows, metrics in runs if rows]
        samples = [sample for _, steps in chosen for step in steps for sample in step["samples"]]
        if sum(len(sample["text"]) + len(sample["prompt"]) for sample in samples) <= BUDGET:
            return [{"label": label, "steps": steps} for label, steps in chosen]
    return []


def steps_of(rows: Sequence[Row], metrics: Sequence[Row], count: int) -> list[dict[str, Any]]:
    """Return at most `count` steps, evenly spaced, the first and the last among them."""
    steps = sorted({row["step"] for row in rows})
    last = len(steps) - 1
    chosen = sorted({steps[last * index // max(1, count - 1)] for index in range(count)}) if count > 1 else steps[-1:]
    by_step = {row["step"]: row for row in metrics}
    return [
        {
            "step": step,
            "reward": f"{by_step[step]['reward_mean']:.0%}" if step in by_step else "-",
            "reasons": ", ".join(f"{share:.0%} {reason}" for reason, share in reason_shares(by_step.get(step, {})).items()),
            "samples": [shown(row) for row in rows if row["step"] == step],
        }
        for step in chosen
    ]


def shown(row: Row) -> dict[str, Any]:
    """Return a completion with its texts cut to CHARACTERS."""
    return row | {name: without_middle(row[name], CHARACTERS) for name in ("prompt", "text")}
