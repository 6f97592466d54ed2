"""The trackers' names for the columns of metrics.jsonl, and a run's configuration, tags and tables for them."""

from typing import Any

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.runs.rollouts import SHARE

TITLES = {"wandb": "W&B", "tensorboard": "TensorBoard", "trackio": "Trackio"}  # of the trackers
STEP = "step"
REACH_STEP = "reach/step"  # axis of the rows of checkpoints
CURVES = {
    "reward_mean": "reward/accuracy",
    "reward_std": "reward/std",
    "zero_std_share": "reward/groups_without_signal",
    "trained_zero_std_share": "reward/trained_groups_without_signal",
    "completion_tokens_mean": "completion/length",
    "completion_tokens_max": "completion/longest",
    "truncated_share": "completion/cut_off",
    "sampling_rounds": "sampling/rounds",
    "sampled_groups": "sampling/groups",
    "bound_hit": "sampling/bound_hit",
    "discarded_completions": "sampling/discarded_completions",
    "discarded_tokens": "sampling/discarded_tokens",
    "loss": "policy/loss",
    "entropy": "policy/entropy",
    "clip_share": "policy/clip_share",
    "grad_norm": "policy/grad_norm",
    "lr": "policy/lr",
    "rank_mean": "adalora/rank",
    "orthogonality_loss": "adalora/orthogonality_loss",
    "sampler_ratio_mean": "sampler/ratio",
    "sampler_ratio_p99": "sampler/ratio_p99",
    "sampler_kl": "sampler/kl",
    "sync_gap_nats": "sampler/sync_gap_nats",
    "sampling_gap_nats": "sampler/sampling_gap_nats",
    "policy_gap_nats": "sampler/policy_gap_nats",
    "update_kept": "sampler/update_kept",
    "tokens_seen": "progress/tokens",
    "rollout_s": "seconds/rollout",
    "reward_s": "seconds/reward",
    "logprobs_s": "seconds/log_probabilities",
    "update_s": "seconds/update",
    "rest_s": "seconds/rest",
    "update_positions": "update/positions",
    "update_tokens": "update/tokens",
    "sync_s": "seconds/sync",
}
# Axes whose values are configuration groups, and their names on W&B.
GROUPS = {"peft": "method", "algo": "objective", "model": "base"}


def wandb_config(cfg: Resolved) -> dict[str, Any]:
    """Return the run's configuration for W&B, with the names by which W&B groups runs."""
    return cfg | {name: cfg[group]["name"] for group, name in GROUPS.items()}


def name_of(column: str) -> str:
    """Return the trackers' name of a column of metrics.jsonl."""
    if column.startswith(SHARE):
        return f"reasons/{column.removeprefix(SHARE)}"
    return CURVES.get(column, f"other/{column}")


def step_point(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of metrics.jsonl under the trackers' names; missing numbers are left out, unknown columns go under `other/`.

    The shares of the verifier's reasons (`share_no_box`) go under `reasons/`.
    """
    named = {name_of(column): value for column, value in row.items() if column != STEP}
    return {STEP: row[STEP]} | {name: value for name, value in named.items() if value is not None}


def reach_point(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of reach.jsonl under the trackers' names, with an axis of its own.

    The change of each kind of layer, and what bfloat16 loses of it (`reach/bfloat16_error/q_proj`, `reach/update_kept/all`).
    """
    lost = {
        f"reach/{column}/{kind}": value
        for column in ("bfloat16_error", "update_kept")
        for kind, value in row.get(column, {}).items()
    }
    return {REACH_STEP: row["step"]} | {f"reach/{kind}": value for kind, value in row["reach"].items()} | lost


def tags(cfg: Resolved, axes: dict[str, Any]) -> list[str]:
    """Return `peft=lora`, `rank=8`, …: one tag per axis that has a value in this run."""
    algo = cfg["algo"]["name"] if is_trained(cfg) else None
    stated = {"model": cfg["model"]["name"], "peft": cfg["peft"]["name"], "algo": algo} | axes
    return [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in stated.items()
            if value is not None]  # fmt: skip


def benchmark_rows(cfg: Resolved, summary: dict[str, Any]) -> tuple[list[str | int], list[list[Any]]]:
    """Return the columns and rows of the run's table: a row per benchmark, then the overall row."""
    scores = ("k", "n", "avg", "avg_se", "pass", "majority", "truncated_share")
    rows = [[name, *(summary.get(f"{name}/{score}") for score in scores)] for name in cfg["benchmark"]]
    return ["benchmark", *scores], [*rows, ["overall", *(summary.get(score) for score in scores)]]


def sample_rows(samples: list[dict[str, Any]]) -> tuple[list[str | int], list[list[Any]]]:
    """Return the columns and rows of the table of training samples: a row per completion of rollouts.jsonl."""
    columns = ("step", "problem", "prompt", "text", "gold", "reward", "correct", "reason", "tokens", "truncated", "trained")
    return list(columns), [[sample[column] for column in columns] for sample in samples]
