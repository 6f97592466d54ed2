"""Define a run's directory: the only module that defines its file names, and reads and writes its state.

config.yaml          the resolved configuration; its hash is the id in the directory's name (.config.json: the same, parsed)
train.json           the configured values and the values of the trainer that was built; packages, device, parameter counts
metrics.jsonl        one row per optimizer step
rollouts.jsonl       some completions of each step: problem, prompt, text, reward, reason, tokens
signal.json          the graded completions of the start policy, from the check before step 1
phase.json           what the trainer does at present, for the display of a launch
reach.jsonl          at each checkpoint, the relative change of each kind of layer, and frozen tensors that changed (none)
stopped_early.json   step and reason of an early stop
per_device.json      completions per forward pass after out-of-memory errors, where fewer than configured
start.safetensors    A and B at step 0, where the seed alone does not determine them (PiSSA, MiLoRA)
checkpoints/         the two latest complete training states, each with checksums.json
merged/              the trained model as a plain transformers checkpoint;  adapter/  the adapter alone; with checksums.json
eval/<name>.jsonl    every sample of a benchmark: problem, sample index, seed, text, answer, verdict (shards/: per process)
eval/right.json      correct samples of each problem, by benchmark;  eval/questions.json  question and gold answer of each
summary.json         one flat row of results
analysis.json        spectra of ΔW against W0, drift, sampler agreement;  spectra.jsonl  the spectra at checkpoints
stages/<stage>.json  written last by a stage that finished: its request, end time and duration
submission.json      the Slurm job of each stage
attempt.json         the attempt that may write to the directory;  heartbeat  touched while it is alive
stop, saved.json     the request to a trainer to save and stop, and its answer: the attempt that saved
attempts.jsonl       every start and end;  failure.json  the error of a failed attempt (.room: disk space reserved for it)
logs/                output of the stages
wandb/               files of the W&B SDK;  wandb/mirror.json  what W&B has received
tensorboard/         event files, and mirror.json;  trackio/mirror.json  what Trackio has received
old/<time>/          results that were replaced;  .lock  held by the process that works on the run
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlvr_sweeps.config.identity import evaluation_spec, run_id, run_name
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import analysis_of, is_trained
from rlvr_sweeps.errors import Damaged, Edited
from rlvr_sweeps.files import (
    append_rows,
    as_yaml,
    read_json,
    read_object,
    read_text,
    refuse_incomplete,
    text_digest,
    try_lock,
    write_json,
    write_text,
)

WAITING_STATES = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}


@dataclass(frozen=True)
class Job:
    """A Slurm job, or one task of a job array, that is queued or running."""

    state: str
    reason: str
    node: str
    comment: str = ""

    @property
    def is_pending(self) -> bool:
        return self.state in WAITING_STATES


Live = Mapping[str, Job]  # the jobs that Slurm lists, by id: 12, or 12_3 for a task of an array
State = Literal["new", "queued", "running", "done", "stale", "failed", "lost", "unknown", "unreadable"]


class NoAnswer(dict[str, Job]):
    """In place of the jobs that Slurm lists, where it is installed and does not answer."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


STAGES = ("train", "evaluate", "analyse")
SETTINGS = (  # that every configuration has; where one is missing, config.yaml is cut
    "model", "peft", "algo", "data", "benchmark", "evaluation", "rollout", "training", "distributed", "cluster", "tracking",
    "sweep", "lr", "batch_size", "steps", "seed", "runs_dir",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run, identified by its directory."""

    path: Path

    @classmethod
    def of(cls, cfg: Resolved) -> "Run":
        """Return the run of a configuration, in its `runs_dir`."""
        return cls(Path(cfg["runs_dir"]).absolute() / run_name(cfg))

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def id(self) -> str:
        return self.name.rpartition("-")[2]

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def parsed_path(self) -> Path:
        """config.yaml already parsed, as JSON: reading it is a hundred times faster."""
        return self.path / ".config.json"

    @property
    def record_path(self) -> Path:
        return self.path / "train.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def rollouts_path(self) -> Path:
        return self.path / "rollouts.jsonl"

    @property
    def signal_path(self) -> Path:
        return self.path / "signal.json"

    @property
    def phase_path(self) -> Path:
        return self.path / "phase.json"

    @property
    def per_device_path(self) -> Path:
        return self.path / "per_device.json"

    @property
    def reach_path(self) -> Path:
        return self.path / "reach.jsonl"

    @property
    def stopped_early_path(self) -> Path:
        return self.path / "stopped_early.json"

    @property
    def start_path(self) -> Path:
        return self.path / "start.safetensors"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter_path(self) -> Path:
        return self.path / "adapter"

    @property
    def merged_path(self) -> Path:
        return self.path / "merged"

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    @property
    def right_path(self) -> Path:
        """The number of correct samples of each problem, by benchmark."""
        return self.path / "eval" / "right.json"

    @property
    def questions_path(self) -> Path:
        """The question and gold answer of each problem, by benchmark."""
        return self.path / "eval" / "questions.json"

    @property
    def analysis_path(self) -> Path:
        return self.path / "analysis.json"

    @property
    def spectra_path(self) -> Path:
        return self.path / "spectra.jsonl"

    def tracker_path(self, tracker: str) -> Path:
        """Return the folder of a tracker: `wandb`, `tensorboard` or `trackio`."""
        return self.path / tracker

    def tracker_record_path(self, tracker: str) -> Path:
        """Return the file that records what a tracker has received."""
        return self.tracker_path(tracker) / "mirror.json"

    @property
    def wandb_path(self) -> Path:
        return self.tracker_path("wandb")

    @property
    def mirror_path(self) -> Path:
        """The record of what W&B has received."""
        return self.tracker_record_path("wandb")

    @property
    def attempts_path(self) -> Path:
        return self.path / "attempts.jsonl"

    @property
    def failure_path(self) -> Path:
        return self.path / "failure.json"

    @property
    def submission_path(self) -> Path:
        return self.path / "submission.json"

    @property
    def attempt_path(self) -> Path:
        return self.path / "attempt.json"

    @property
    def heartbeat_path(self) -> Path:
        return self.path / "heartbeat"

    @property
    def stop_path(self) -> Path:
        return self.path / "stop"

    @property
    def saved_path(self) -> Path:
        return self.path / "saved.json"

    @property
    def room_path(self) -> Path:
        return self.path / ".room"

    def samples_path(self, benchmark: str) -> Path:
        """Return the file of every sample of a benchmark."""
        return self.path / "eval" / f"{benchmark}.jsonl"

    def shard_path(self, benchmark: str, process: int) -> Path:
        """Return the file to which one of several processes appends its samples; samples_path collects them at the end."""
        return self.path / "eval" / "shards" / f"{benchmark}.{process}.jsonl"

    def shard_paths(self, benchmark: str) -> list[Path]:
        """Return the shard files of a benchmark that exist, sorted."""
        return sorted((self.path / "eval" / "shards").glob(f"{benchmark}.*.jsonl"))

    @property
    def small_files(self) -> list[Path]:
        """The existing files that states, tables, figures and comparisons are made from: megabytes, not gigabytes."""
        single = [self.config_path, self.attempts_path, self.record_path, self.metrics_path, self.reach_path,
                  self.stopped_early_path, self.merged_path / "config.json", self.right_path, self.questions_path,
                  self.summary_path, self.analysis_path, self.spectra_path]  # fmt: skip
        return [path for path in [*single, *(self.stage_path(stage) for stage in STAGES)] if path.exists()]

    def log_path(self, stage: str) -> Path:
        return self.path / "logs" / f"{stage}.txt"

    def stage_path(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"

    def prepare(self, cfg: Resolved) -> None:
        """Create the directory and write config.yaml; settings outside the id may differ from those of an earlier launch.

        Raises Damaged where an existing config.yaml was edited or cannot be read.
        """
        if self.config_path.exists():
            self.config()
        text = as_yaml(cfg)
        write_json(self.parsed_path, {"of": text_digest(text), "config": cfg, "sha256": text_digest(json.dumps(cfg))})
        write_text(self.config_path, text)

    def config(self) -> Resolved:
        """Return the stored configuration, which always matches the run's id.

        Raises Edited where it was edited, and Damaged where it cannot be read.
        """
        text = read_text(self.config_path)
        if text is None:
            raise Damaged(self.config_path, "it is missing")
        if (parsed := self.parsed_config()) and parsed["of"] == text_digest(text):
            cfg: Resolved = parsed["config"]
            return cfg
        try:
            stored = OmegaConf.to_container(OmegaConf.create(text))
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
            raise Damaged(self.config_path, f"it is not YAML ({str(error).splitlines()[0]})") from None
        refuse_incomplete(self.config_path, stored, SETTINGS, "it")
        assert isinstance(stored, dict)
        cfg = {str(key): value for key, value in stored.items()}
        if stored_id(cfg) != self.id:
            raise Edited(self.config_path, f"hashes to {stored_id(cfg)}, but the directory is named {self.id}")
        return cfg

    def parsed_config(self) -> dict[str, Any] | None:
        """Return the content of .config.json, a copy that nothing depends on; None where it is missing or damaged."""
        try:
            parsed = read_object(self.parsed_path, "of", "config")
        except Damaged:
            return None
        if parsed and parsed.get("sha256", sha256 := text_digest(json.dumps(parsed["config"]))) != sha256:
            return None
        return parsed

    def stages(self, cfg: Resolved) -> list[str]:
        """Return the run's stages in order: an untrained run is only evaluated, and analysis=none skips the analysis."""
        included = {"train": is_trained(cfg), "evaluate": True, "analyse": is_trained(cfg) and analysis_of(cfg) != "none"}
        return [stage for stage in STAGES if included[stage]]

    def marker(self, stage: str) -> dict[str, Any] | None:
        """Return what a finished stage recorded: its specification, the time of its end, its seconds; None without it.

        Raises Damaged where the file cannot be read, or is that of another run.
        """
        path = self.stage_path(stage)
        marker = read_object(path, "spec", "finished", "seconds")
        if marker and (not isinstance(marker["spec"], dict) or marker["spec"].get("run") != self.id):
            raise Damaged(path, f"it is not a record of run {self.id}")
        return marker

    def spec(self, stage: str, cfg: Resolved) -> dict[str, Any]:
        """Return what a finished stage must have recorded to count as done: its request and the end time of the training."""
        if stage == "train":
            return {"run": self.id}
        spec = {"run": self.id, "trained": (self.marker("train") or {}).get("finished")}
        return spec | {"evaluation": evaluation_spec(cfg)} if stage == "evaluate" else spec

    def is_done(self, stage: str, cfg: Resolved) -> bool:
        """Return whether the stage has finished for this configuration and its results exist.

        Raises Damaged where one of the files that say so cannot be read.
        """
        marker = self.marker(stage)
        if marker is None or marker["spec"] != self.spec(stage, cfg):
            return False
        if stage == "train":
            model_config = self.merged_path / "config.json"
            if model_config.is_dir():
                raise Damaged(model_config, "a folder is in its place")
            return read_object(self.record_path) is not None and model_config.exists()
        return read_object(self.summary_path if stage == "evaluate" else self.analysis_path) is not None

    def finish(self, stage: str, cfg: Resolved, seconds: float) -> None:
        """Mark a stage as done, its last action; checkpoints are deleted after training."""
        marker = {"spec": self.spec(stage, cfg), "finished": time.time(), "seconds": seconds}
        write_json(self.stage_path(stage), marker)
        if stage == "train":
            shutil.rmtree(self.checkpoints_path, ignore_errors=True)

    def state(self, cfg: Resolved | None = None, live: Live | None = None) -> State:
        """Return the run's state with respect to `cfg`, by default its stored configuration; `live`: the jobs of Slurm.

        stale: trained, but evaluated for other settings, or not analysed. lost: started, but no process or job works on it.
        unknown: submitted to Slurm, which does not answer. A caller shows a run for which Damaged is raised as unreadable.
        Raises Edited where the stored configuration was edited, and Damaged where a file cannot be read.
        """
        if not self.config_path.exists():
            return "new"
        own = self.config()
        return self.state_of(cfg or own, live)

    def state_of(self, cfg: Resolved, live: Live | None) -> State:
        """Return the state of an existing directory, without a check of its stored configuration."""
        if self.is_claimed():
            return "running"
        done = [self.is_done(stage, cfg) for stage in self.stages(cfg)]
        if all(done):
            return "done"
        if live and (jobs := [live[job] for job in self.jobs().values() if job in live]):
            return "queued" if all(job.is_pending for job in jobs) else "running"
        if isinstance(live, NoAnswer) and self.jobs():
            return "unknown"
        if self.failure():
            return "failed"
        if done[0] and self.summary_path.exists():
            return "stale"
        return "lost" if self.attempts_path.exists() or self.jobs() else "new"

    def jobs(self) -> dict[str, str]:
        """Return the latest Slurm job of each stage, by stage; empty for a run that was never submitted."""
        submitted = self.submission() or {"stages": {}}
        return {stage: entry["job"] for stage, entry in submitted["stages"].items()}

    def submission(self, *keys: str) -> dict[str, Any] | None:
        """Return the content of submission.json; None for a run that was never submitted.

        Raises Damaged where the file cannot be read, or lacks one of `keys`.
        """
        submitted = read_object(self.submission_path, "stages", *keys)
        if submitted and not all("job" in entry for entry in submitted["stages"].values()):
            raise Damaged(self.submission_path, "a stage has no 'job'")
        return submitted

    def failure(self) -> dict[str, Any] | None:
        """Return the content of failure.json: the stage and error of a failed attempt; None without one. Raises Damaged."""
        return read_object(self.failure_path, "error")

    def write_phase(self, phase: str) -> None:
        """Record what the trainer does at present; a display reads it, and nothing depends on it."""
        with contextlib.suppress(OSError):
            self.phase_path.write_text(json.dumps({"phase": phase, "since": time.time()}))

    def right_samples(self) -> dict[str, dict[str, Any]] | None:
        """Return the content of eval/right.json: by benchmark k, a hash of the golds, and right samples by problem.

        None without the file. Raises Damaged.
        """
        right = read_object(self.right_path)
        for entry in (right or {}).values():
            refuse_incomplete(self.right_path, entry, ("k", "golds", "right"), "an entry")
        return right

    def saved_attempt(self) -> int | None:
        """Return the attempt that saved last on request; None where there is none, or saved.json is damaged."""
        with contextlib.suppress(Damaged):
            saved = read_json(self.saved_path)
            return saved if isinstance(saved, int) else None
        return None

    def phase(self) -> str | None:
        """Return what the trainer does at present; None where it is not known, or is being written."""
        with contextlib.suppress(Damaged):
            return str((read_object(self.phase_path, "phase") or {"phase": None})["phase"] or "") or None
        return None

    def log_event(self, event: str, **facts: Any) -> None:
        """Append an event to attempts.jsonl, with time and process id."""
        append_rows(self.attempts_path, [{"time": time.time(), "event": event, "pid": os.getpid(), **facts}])

    @contextmanager
    def claim(self, patience_s: float = 0.5) -> Iterator[bool]:
        """Hold the run's lock inside the context; yield False where another process keeps it for longer than `patience_s`.

        The kernel frees the lock when the last process that holds it ends, for whatever reason; stages inherit it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            os.set_inheritable(lock.fileno(), True)  # a stage that replaces itself by torchrun keeps the lock
            yield try_lock(lock.fileno(), fcntl.LOCK_EX, patience_s)

    def is_claimed(self) -> bool:
        """Return whether a process holds the run's lock."""
        try:
            with (self.path / ".lock").open() as lock:
                return not try_lock(lock.fileno(), fcntl.LOCK_SH)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise Damaged(self.path / ".lock", f"it cannot be opened ({error.strerror})") from None

    def set_aside(self, paths: list[Path], why: str) -> None:
        """Move results that will be computed again into old/<time>/, so that nothing is lost."""
        self._preserve(paths, why, shutil.move)

    def keep_copies(self, paths: list[Path], why: str) -> None:
        """Hard-link files that will be replaced into old/<time>/; the originals stay in place."""
        self._preserve(paths, why, os.link)

    def _preserve(self, paths: list[Path], why: str, transfer: Callable[[Path, Path], object]) -> None:
        present = [path for path in paths if path.exists()]
        if not present:
            return
        archive = self.path / "old" / f"{time.time():.3f}"
        while archive.exists():  # of another call in the same millisecond
            time.sleep(0.001)
            archive = self.path / "old" / f"{time.time():.3f}"
        archive.mkdir(parents=True)
        for path in present:
            shares_name = [other.name for other in present].count(path.name) > 1  # train.json and stages/train.json
            transfer(path, archive / (".".join(path.relative_to(self.path).parts) if shares_name else path.name))
        self.log_event("set_aside", why=why, files=[path.name for path in present], to=str(archive.relative_to(self.path)))


def stored_id(cfg: Resolved) -> str | None:
    """Return the id of a stored configuration; None where it lacks a setting that counts."""
    try:
        return run_id(cfg)
    except (KeyError, TypeError, AttributeError):
        return None


def all_runs(runs_dir: Path) -> list[Run]:
    """Return every run in a runs folder, sorted by name."""
    return [Run(path.parent) for path in sorted(runs_dir.glob("*/config.yaml"))]
