"""A run on Weights & Biases.

Online, W&B itself has the last step, so a requeued run continues its curve. Offline, each process writes the complete run again
from its files and removes earlier offline folders: the newest is always complete.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.reporting.tracking.names import CURVES, REACH_STEP, STEP, wandb_config
from rlvr_sweeps.reporting.tracking.tracker import Facts
from rlvr_sweeps.runs.directory import Run

REMOVED_VARIABLES = ("WANDB_SERVICE", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR", "WANDB_NOTES")


class WandbTracker:
    """One W&B run."""

    is_complete_each_time = True
    remedy = "`rlvr wandb sync` sends the rest"

    def __init__(self, facts: Facts) -> None:
        isolate(facts.run)
        self.facts, self.settings = facts, facts.settings
        self.wandb: Any = None  # the SDK's run
        self.previous_folders: list[Path] = []

    def begin(self, record: Mapping[str, Any]) -> dict[str, int]:
        """Open the W&B run; raises what the SDK raises."""
        import wandb

        self.previous_folders = [path for path in self.facts.run.wandb_path.glob("*run-*") if path.is_dir()]
        run, cfg, connects = self.facts.run, self.facts.cfg, online(self.settings["mode"])
        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, save_code=False, x_save_requirements=False,
            init_timeout=self.settings["init_timeout_s"], finish_timeout=self.settings["finish_timeout_s"],
            x_disable_stats=not self.facts.stage_pid, x_stats_pid=self.facts.stage_pid or os.getpid(),
        )  # fmt: skip
        self.wandb = wandb.init(
            id=run.id, name=run.name, resume="allow", mode="online" if connects else "offline",
            entity=self.settings["entity"], project=self.settings["project"], dir=str(run.path),
            group=cfg["sweep"], job_type="train" if is_trained(cfg) else "evaluate",
            tags=self.facts.labels, config=wandb_config(cfg), allow_val_change=True, settings=settings,
        )  # fmt: skip
        for axis in (STEP, REACH_STEP):
            self.wandb.define_metric(axis, hidden=True)
        self.wandb.define_metric("reach/*", step_metric=REACH_STEP)
        for family in sorted({name.partition("/")[0] for name in CURVES.values()} | {"other", "reasons"}):
            self.wandb.define_metric(f"{family}/*", step_metric=STEP)
        return {axis: int(self.wandb.summary.get(axis) or 0) if connects else 0 for axis in (STEP, REACH_STEP)}

    def log(self, axis: str, values: dict[str, Any]) -> None:
        """Log a row; the SDK sends it in the background."""
        self.wandb.log(values)

    def flush(self) -> None:
        """Remove the offline folders of earlier processes, whose rows this one has written again."""
        while self.previous_folders:
            shutil.rmtree(self.previous_folders.pop())

    def log_summary(self, step: int, summary: dict[str, Any]) -> None:
        """Set the values of W&B's summary."""
        self.wandb.summary.update(summary)

    def log_table(self, step: int, name: str, columns: Sequence[str | int], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""
        import wandb

        self.wandb.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def finish(self, outcome: str, files: Sequence[Path]) -> None:
        """Save the files of a completed stage, then finish the W&B run."""
        for path in files:
            self.wandb.save(str(path), base_path=str(self.facts.run.path.parent), policy="now")
        if outcome == "saved":
            self.wandb.mark_preempting()
        self.wandb.finish(exit_code=0 if outcome == "done" else 1)

    def missing(self, sent: Mapping[str, int], summary: Mapping[str, Any]) -> str | None:
        """Compare the server's summary with what was sent: the SDK reports some failures (a full quota) only in its log."""
        import wandb

        if self.wandb.offline:
            return None
        remote: Any = wandb.Api(timeout=int(self.settings["finish_timeout_s"])).run(self.wandb.path).summary
        step = int(remote.get(STEP) or 0)
        if step == sent[STEP] and all(remote.get(key) == value for key, value in summary.items()):
            return ""
        return f"it has step {step} of {sent[STEP]}{' and not this summary' if summary else ''}"

    def connection(self) -> dict[str, Any]:
        """Return the mode and, online, the address."""
        return {"mode": "offline"} if self.wandb.offline else {"mode": "online", "url": self.wandb.url}


def online(mode: str) -> bool:
    """Return whether to connect to the server: as `mode` sets it; for `auto`, if a key is available."""
    import wandb

    if mode != "auto":
        return mode == "online"
    return os.environ.get("WANDB_MODE", "online") == "online" and wandb.login(prompt=False, verify=False)


def isolate(run: Run) -> None:
    """Keep the SDK's files in the run's folder, and remove other runs' settings from the environment."""
    for name in REMOVED_VARIABLES:
        os.environ.pop(name, None)
    os.environ |= {name: str(run.wandb_path / "data") for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ARTIFACT_DIR")}
    os.environ["WANDB_ERROR_REPORTING"] = "false"
