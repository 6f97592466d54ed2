"""A run's directory: the only module that spells its file names and reads its state.

config.yaml          the resolved configuration; hashes to the id in the directory's name
train.json           what was asked beside what was built
metrics.jsonl        one row per optimizer step
reach.jsonl          at each checkpoint, how far each kind of layer moved; frozen tensors that changed (none)
stopped_early.json   at which step and why, if it did
per_device.json      completions per forward pass, where tries found no memory for those that were asked
start.safetensors    A and B at step 0, where they are not what a seed gives (PiSSA, MiLoRA)
checkpoints/         the latest complete training state
merged/              the trained model as a plain transformers checkpoint (adapter/ beside it: the adapter alone)
eval/<name>.jsonl    every sample: problem, sample index, seed, text, answer, verdict
summary.json         one flat row;  analysis.json  spectra of ΔW against W0 (spectra.jsonl: at checkpoints), drift, sampler
stages/<stage>.json  written last by a stage that finished: what it was asked, when, how long
submission.json      the Slurm job of each stage;  attempt.json, heartbeat  the attempt that may write, and that it lives
wandb/               the SDK's own files, mirror.json: what W&B has
stop, saved.json     what a trainer is asked by, and how it answers: the attempt that saved
attempts.jsonl       every start and stop;  failure.json  why it failed (.room: kept for it);  logs/  what it printed
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from rlvr_sweeps.config.identity import evaluation_spec, run_id, run_name
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import analysis_of, is_trained
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import append_rows, as_yaml, read_json, text_digest, try_lock, write_json, write_text

WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}


@dataclass(frozen=True)
class Job:
    """A job, or one task of an array, that Slurm still knows as queued or at work."""

    state: str
    reason: str
    node: str

    @property
    def waits(self) -> bool:
        return self.state in WAITING


Live = Mapping[str, Job]  # by id: 12, or 12_3 for a task of an array

State = Literal["new", "queued", "running", "done", "stale", "failed", "lost"]
STAGES = ("train", "evaluate", "analyse")


@dataclass(frozen=True)
class Run:
    """One run, by its directory."""

    path: Path

    @classmethod
    def of(cls, cfg: Resolved) -> "Run":
        return cls(Path(cfg["runs_dir"]).absolute() / run_name(cfg))

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def id(self) -> str:
        return self.name.rpartition("-")[2]

    config_path = property(lambda self: self.path / "config.yaml")
    parsed_path = property(lambda self: self.path / ".config.json")  # config.yaml already parsed: a hundred times faster
    record_path = property(lambda self: self.path / "train.json")
    metrics_path = property(lambda self: self.path / "metrics.jsonl")
    per_device_path = property(lambda self: self.path / "per_device.json")
    reach_path = property(lambda self: self.path / "reach.jsonl")
    stopped_early_path = property(lambda self: self.path / "stopped_early.json")
    start_path = property(lambda self: self.path / "start.safetensors")
    checkpoints_path = property(lambda self: self.path / "checkpoints")
    adapter_path = property(lambda self: self.path / "adapter")
    merged_path = property(lambda self: self.path / "merged")
    summary_path = property(lambda self: self.path / "summary.json")
    right_path = property(lambda self: self.path / "eval" / "right.json")  # right samples of each problem, by benchmark
    questions_path = property(lambda self: self.path / "eval" / "questions.json")  # question and gold of each, likewise
    analysis_path = property(lambda self: self.path / "analysis.json")
    spectra_path = property(lambda self: self.path / "spectra.jsonl")
    wandb_path = property(lambda self: self.path / "wandb")
    mirror_path = property(lambda self: self.path / "wandb" / "mirror.json")
    attempts_path = property(lambda self: self.path / "attempts.jsonl")
    failure_path = property(lambda self: self.path / "failure.json")
    submission_path = property(lambda self: self.path / "submission.json")
    attempt_path = property(lambda self: self.path / "attempt.json")
    heartbeat_path = property(lambda self: self.path / "heartbeat")
    stop_path = property(lambda self: self.path / "stop")
    saved_path = property(lambda self: self.path / "saved.json")
    room_path = property(lambda self: self.path / ".room")

    def samples_path(self, benchmark: str) -> Path:
        return self.path / "eval" / f"{benchmark}.jsonl"

    def shard_path(self, benchmark: str, process: int) -> Path:
        """What one of several processes appends to while it samples; gathered into samples_path."""
        return self.path / "eval" / "shards" / f"{benchmark}.{process}.jsonl"

    def shard_paths(self, benchmark: str) -> list[Path]:
        return sorted((self.path / "eval" / "shards").glob(f"{benchmark}.*.jsonl"))

    @property
    def small_files(self) -> list[Path]:
        """What states, tables, figures and comparisons are made from, where it is there: megabytes, not gigabytes."""
        single = [self.config_path, self.attempts_path, self.record_path, self.metrics_path, self.reach_path,
                  self.stopped_early_path, self.merged_path / "config.json", self.right_path, self.questions_path,
                  self.summary_path, self.analysis_path, self.spectra_path]  # fmt: skip
        return [path for path in [*single, *(self.stage_path(stage) for stage in STAGES)] if path.exists()]

    def log_path(self, stage: str) -> Path:
        return self.path / "logs" / f"{stage}.txt"

    def stage_path(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"

    def prepare(self, cfg: Resolved) -> None:
        """Make the directory and write its config.yaml; what is not science may change from launch to launch."""
        if self.config_path.exists():
            self.config()
        text = as_yaml(cfg)
        write_json(self.parsed_path, {"of": text_digest(text), "config": cfg})
        write_text(self.config_path, text)

    def config(self) -> Resolved:
        """The configuration as written; Refused where it was edited, so that a run is always what its name says."""
        text = self.config_path.read_text()
        parsed = read_json(self.parsed_path)
        if parsed and parsed["of"] == text_digest(text):
            cfg: Resolved = parsed["config"]
            return cfg
        stored = OmegaConf.to_container(OmegaConf.create(text))
        assert isinstance(stored, dict)
        cfg = {str(key): value for key, value in stored.items()}
        if run_id(cfg) != self.id:
            raise Refused(
                f"{self.config_path} hashes to {run_id(cfg)}, but the directory's name says {self.id}: it was edited, and the "
                "results beside it belong to the old values. Put the file back, or launch the new values as overrides (they "
                "get a directory of their own), or delete the directory."
            )
        return cfg

    def stages(self, cfg: Resolved) -> list[str]:
        """Those this run has, in order: Base is not trained and has no update, and a run from before asks for no analysis."""
        wanted = {"train": is_trained(cfg), "evaluate": True, "analyse": is_trained(cfg) and analysis_of(cfg) != "none"}
        return [stage for stage in STAGES if wanted[stage]]

    def spec(self, stage: str, cfg: Resolved) -> dict[str, Any]:
        """What a finished stage must have been asked for to count as done: its own request and its input's finish."""
        if stage == "train":
            return {"run": self.id}
        asked = {"run": self.id, "trained": (read_json(self.stage_path("train")) or {}).get("finished")}
        return asked | {"evaluation": evaluation_spec(cfg)} if stage == "evaluate" else asked

    def is_done(self, stage: str, cfg: Resolved) -> bool:
        marker = read_json(self.stage_path(stage))
        if marker is None or marker["spec"] != self.spec(stage, cfg):
            return False
        if stage == "train":
            return read_json(self.record_path) is not None and (self.merged_path / "config.json").exists()
        return read_json(self.summary_path if stage == "evaluate" else self.analysis_path) is not None

    def finish(self, stage: str, cfg: Resolved, seconds: float) -> None:
        """Mark a stage done; the last thing a stage does."""
        marker = {"spec": self.spec(stage, cfg), "finished": time.time(), "seconds": seconds}
        write_json(self.stage_path(stage), marker)
        if stage == "train":
            shutil.rmtree(self.checkpoints_path, ignore_errors=True)

    def state(self, cfg: Resolved | None = None, live: Live | None = None) -> State:
        """Where the run stands, asked for `cfg` (by default its own); `live`: the jobs that Slurm has, where there is one.

        stale: trained, but evaluated for another request, or not yet analysed. lost: it started, and whoever ran it is gone.
        """
        if not self.config_path.exists():
            return "new"
        own = self.config()
        return self.state_of(cfg or own, live)

    def state_of(self, cfg: Resolved, live: Live | None) -> State:
        """`state` of a directory whose configuration has been read."""
        if self.is_claimed():
            return "running"
        done = [self.is_done(stage, cfg) for stage in self.stages(cfg)]
        if all(done):
            return "done"
        if live and (jobs := [live[job] for job in self.jobs().values() if job in live]):
            return "queued" if all(job.waits for job in jobs) else "running"
        if self.failure_path.exists():
            return "failed"
        if done[0] and self.summary_path.exists():
            return "stale"
        return "lost" if self.attempts_path.exists() or self.jobs() else "new"

    def jobs(self) -> dict[str, str]:
        """The last Slurm job of each stage, by stage; empty for a run that was never submitted."""
        submitted = read_json(self.submission_path) or {}
        return {stage: entry["job"] for stage, entry in submitted.get("stages", {}).items()}

    def log_event(self, event: str, **facts: Any) -> None:
        append_rows(self.attempts_path, [{"time": time.time(), "event": event, "pid": os.getpid(), **facts}])

    @contextmanager
    def claim(self, patience_s: float = 0.5) -> Iterator[bool]:
        """Hold the run's lock while inside; yields False where another process holds it for longer than `patience_s`.

        The kernel frees the lock when the last process that holds it ends, however it ends: a stage counts.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            os.set_inheritable(lock.fileno(), True)  # a stage that becomes torchrun holds it too
            yield try_lock(lock.fileno(), fcntl.LOCK_EX, patience_s)

    def is_claimed(self) -> bool:
        try:
            with (self.path / ".lock").open() as lock:
                return not try_lock(lock.fileno(), fcntl.LOCK_SH)
        except FileNotFoundError:
            return False

    def set_aside(self, paths: list[Path], why: str) -> None:
        """Move results that are about to be made again into old/<time>/, so that nothing computed is lost."""
        self._keep(paths, why, shutil.move)

    def keep_copies(self, paths: list[Path], why: str) -> None:
        """Keep files that are about to be replaced in old/<time>/; they stay where they are until they are."""
        self._keep(paths, why, os.link)

    def _keep(self, paths: list[Path], why: str, how: Callable[[Path, Path], object]) -> None:
        present = [path for path in paths if path.exists()]
        if not present:
            return
        attic = self.path / "old" / f"{time.time():.3f}"
        attic.mkdir(parents=True)
        for path in present:
            how(path, attic / path.name)
        self.log_event("set_aside", why=why, files=[path.name for path in present], to=str(attic.relative_to(self.path)))


def all_runs(runs_dir: Path) -> list[Run]:
    """Every run under a runs folder, by name."""
    return [Run(path.parent) for path in sorted(runs_dir.glob("*/config.yaml"))]
