"""Send a run's files to W&B from a separate process, so that no failure of W&B affects training.

    python -m rlvr_sweeps.reporting.tracking.mirror '{"run": path, "mode": "auto", …}'

Online, it sends only the rows after the last step in W&B's summary, so a requeued run continues its curve and repeated steps
are sent once. Offline, each process writes the complete run again from its files and removes earlier offline folders: the
newest is always complete. If the server refuses or does not answer, the mirror restarts offline, with one line in the stage's
log; any other error ends this process only.
"""

import fcntl
import json
import os
import select
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlvr_sweeps.config.settings import dial_values, is_trained
from rlvr_sweeps.files import read_object, read_rows, try_lock, write_json
from rlvr_sweeps.reporting.tracking.names import (
    CURVES,
    STEP,
    benchmark_rows,
    reach_point,
    sample_rows,
    step_point,
    tags,
    wandb_config,
)
from rlvr_sweeps.reporting.tracking.stage import Task, command
from rlvr_sweeps.runs.directory import Run

POLL_S = 2.0
MAX_SAMPLES = 1000  # the last completions of rollouts.jsonl that W&B gets as a table
GRACE_S = 30.0  # added to the SDK's own time-outs, which it may exceed
REMOVED_VARIABLES = ("WANDB_SERVICE", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR", "WANDB_NOTES")


class Mirror:
    """One W&B run and the run directory that it copies."""

    def __init__(self, task: Task) -> None:
        self.task, self.tracking = task, task.tracking
        self.run = Run(Path(task.run))
        self.cfg = self.run.config()
        self.sent = {STEP: 0, "reach/step": 0}
        self.wandb: Any = None  # the SDK's run
        self.confirmed = False  # whether the server has all rows and the summary

    def work(self) -> None:
        """Open the W&B run, send rows until the stage ends, and finish; raises TimeoutError and what the SDK raises."""
        self.run.wandb_path.mkdir(exist_ok=True)
        with (self.run.wandb_path / ".lock").open("w") as lock:
            patience_s = self.tracking["finish_timeout_s"]
            self.limit(self.tracking["init_timeout_s"] + patience_s)
            if not try_lock(lock.fileno(), fcntl.LOCK_EX, patience_s):  # the previous stage's mirror may still be sending
                raise TimeoutError("another mirror of this run is still running")
            previous_folders = [path for path in self.run.wandb_path.glob("*run-*") if path.is_dir()]
            self.begin(online(self.tracking["mode"]))
            self.send_rows()
            for folder in previous_folders:
                shutil.rmtree(folder)
            signal.alarm(0)
            outcome = self.follow() if self.task.parent else "done"
            self.limit(2 * patience_s)
            self.end(outcome)

    def limit(self, seconds: float) -> None:
        """Set an alarm that interrupts a blocked call after `seconds` and GRACE_S."""
        signal.alarm(int(seconds + GRACE_S))

    def begin(self, connects: bool) -> None:
        """Open the W&B run; raises what the SDK raises."""
        import wandb

        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, save_code=False, x_save_requirements=False,
            init_timeout=self.tracking["init_timeout_s"], finish_timeout=self.tracking["finish_timeout_s"],
            x_disable_stats=not self.task.parent, x_stats_pid=self.task.parent or os.getpid(),
        )  # fmt: skip
        self.wandb = wandb.init(
            id=self.run.id, name=self.run.name, resume="allow", mode="online" if connects else "offline",
            entity=self.tracking["entity"], project=self.tracking["project"], dir=str(self.run.path),
            group=self.cfg["sweep"], job_type="train" if is_trained(self.cfg) else "evaluate",
            tags=tags(self.cfg, dial_values(self.cfg)), config=wandb_config(self.cfg), allow_val_change=True,
            settings=settings,
        )  # fmt: skip
        if connects:
            self.sent = {key: int(self.wandb.summary.get(key) or 0) for key in self.sent}
        for key in self.sent:
            self.wandb.define_metric(key, hidden=True)
        self.wandb.define_metric("reach/*", step_metric="reach/step")
        for family in sorted({name.partition("/")[0] for name in CURVES.values()} | {"other", "reasons"}):
            self.wandb.define_metric(f"{family}/*", step_metric=STEP)
        self.note()

    def follow(self) -> str:
        """Send rows until the stage ends; return its outcome (`done`, `saved`, `failed`), or `gone` if it ended without one."""
        while True:
            ready = select.select([sys.stdin], [], [], POLL_S)[0]
            outcome = (sys.stdin.readline().strip() or "gone") if ready else ""
            if not outcome and os.getppid() != self.task.parent:
                outcome = "gone"
            self.send_rows()
            if outcome:
                return outcome

    def send_rows(self) -> None:
        """Send every complete row that W&B lacks."""
        reaches = [reach_point(row) for row in read_rows(self.run.reach_path, "step", "reach")]
        for key, points in ((STEP, [step_point(row) for row in self.steps()]), ("reach/step", reaches)):
            for values in points:
                if values[key] > self.sent[key]:
                    self.wandb.log(values)
                    self.sent[key] = values[key]

    def steps(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl; before training truncates it to its checkpoint, only those that it keeps."""
        rows = read_rows(self.run.metrics_path, "step")
        if rows and self.run.metrics_path.stat().st_ino == self.task.rewritten:
            return [row for row in rows if row["step"] <= self.task.last_kept_step]
        return rows

    def end(self, outcome: str) -> None:
        """Send the summary, the table and the files of a completed stage, then finish the W&B run."""
        import wandb

        summary: dict[str, Any] = read_object(self.run.summary_path) or {}
        if outcome == "done":
            if summary:
                columns, rows = benchmark_rows(self.cfg, summary)
                self.wandb.log({"table/benchmarks": wandb.Table(columns=columns, data=rows)})
                self.wandb.summary.update(summary)
                if samples := read_rows(self.run.rollouts_path)[-MAX_SAMPLES:]:
                    columns, rows = sample_rows(samples)
                    self.wandb.log({"table/training_samples": wandb.Table(columns=columns, data=rows)})
            for path in self.run.small_files:
                self.wandb.save(str(path), base_path=str(self.run.path.parent), policy="now")
        if outcome == "saved":
            self.wandb.mark_preempting()
        self.wandb.finish(exit_code=0 if outcome == "done" else 1)
        if outcome == "done" and not self.wandb.offline:
            self.confirm(summary)
        self.note(outcome)

    def confirm(self, summary: dict[str, Any]) -> None:
        """Compare the server's summary with the sent rows: the SDK reports some failures (a full quota) only in its log."""
        import wandb

        remote: Any = wandb.Api(timeout=int(self.tracking["finish_timeout_s"])).run(self.wandb.path).summary
        step = int(remote.get(STEP) or 0)
        self.confirmed = step == self.sent[STEP] and all(remote.get(key) == value for key, value in summary.items())
        if not self.confirmed:
            summary_note = " and not this summary" if summary else ""
            warn(f"it has step {step} of {self.sent[STEP]}{summary_note}; `rlvr wandb sync` sends the rest")

    def note(self, outcome: str = "") -> None:
        """Write the mode, the address and the last sent steps to the run's mirror file."""
        connection = {"mode": "offline"} if self.wandb.offline else {"mode": "online", "url": self.wandb.url}
        write_json(self.run.mirror_path, connection | {"sent": self.sent, "ended": outcome, "confirmed": self.confirmed})


def warn(text: str) -> None:
    """Print one line into the stage's log."""
    print(f"W&B: {text}", flush=True)


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


def main(task: Task) -> None:
    """Mirror one run; after an error before the W&B run was open, restart offline."""
    run = Run(Path(task.run))
    isolate(run)
    signal.signal(signal.SIGALRM, raise_timeout)
    mirror = Mirror(task)
    try:
        mirror.work()
    except Exception as error:
        restarts = task.tracking["mode"] != "offline" and mirror.wandb is None
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        warn(f"{message}: {'offline' if restarts else 'the mirror is off'} from here on; `rlvr wandb sync` sends the rest")
        write_json(run.mirror_path, {"mode": "off", "warning": message})
        if restarts:
            os.execv(sys.executable, command(replace(task, tracking=task.tracking | {"mode": "offline"})))
        os._exit(1)  # skip the SDK's exit handlers, which would wait for the server


def raise_timeout(*_: object) -> None:
    """Raise TimeoutError (the handler of SIGALRM)."""
    raise TimeoutError("the W&B SDK does not return")


if __name__ == "__main__":
    main(Task(**json.loads(sys.argv[1])))
