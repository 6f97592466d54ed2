"""How fast runs on disk were: seconds per step and lengths of completions, by what they depend on."""

import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained, rank_of, training_of
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json
from rlvr_sweeps.planning.hardware import gpu_by_driver_name
from rlvr_sweeps.runs.directory import Run, all_runs
from rlvr_sweeps.runs.failures import with_fitting_batch
from rlvr_sweeps.runs.reading import STEP_SECONDS, last_rows

STEPS_READ = 32  # steps of a run that are read, from its end
RUNS_PER_SHAPE = 3  # runs per shape that are read, the newest


@dataclass(frozen=True)
class Pace:
    """Medians over the last steps of one finished run, the device it ran on, and what it was."""

    cfg: Resolved
    gpu: str | None  # of conf/hardware.yaml; None: no GPU, or one not known there
    step_s: float
    completion: float
    rounds: float


@dataclass
class Paces:
    """What the finished runs of a folder say about runs to come."""

    by_shape: dict[Hashable, list[Pace]] = field(default_factory=lambda: defaultdict(list))
    by_model: dict[Hashable, list[Pace]] = field(default_factory=lambda: defaultdict(list))


def shape(cfg: Resolved, gpu: str | None) -> tuple[Hashable, ...]:
    """What seconds per step depend on: not the seed, not the learning rate."""
    method = cfg["peft"]
    return (
        *model_shape(cfg, gpu), *layout(cfg), method["name"], rank_of(cfg), cfg["dropout"] > 0,
        repr(method["config"].get("target_modules")), method.get("factored_norm", True), cfg["batch_size"],
        cfg["rollout"]["group_size"], cfg["rollout"]["temperature"], repr(cfg["rollout"]["trl"]),
        cfg["algo"]["sampling_rounds"], cfg["training"]["per_device_batch_size"], cfg["training"]["gradient_checkpointing"],
        training_of(cfg, "micro_batches"), training_of(cfg, "log_probabilities"), cfg["cluster"].get("runs_per_gpu", 1),
    )  # fmt: skip


def model_shape(cfg: Resolved, gpu: str | None) -> tuple[Hashable, ...]:
    """What the lengths of completions, and the model's error on a machine, depend on."""
    return (
        gpu, cfg["model"]["name"], cfg["model"]["path"], cfg["model"]["autocast_bf16"], cfg["data"]["path"],
        cfg["rollout"]["engine"], cfg["rollout"]["max_tokens"],
    )  # fmt: skip


def layout(cfg: Resolved) -> tuple[str, int]:
    return cfg["distributed"]["name"], cfg["distributed"]["processes"]


def read_paces(folders: Iterable[str]) -> Paces:
    """The finished runs under some runs folders, the newest first, at most RUNS of a shape."""
    paces = Paces()
    runs = [run for folder in folders for run in all_runs(Path(folder)) if run.stage_path("train").exists()]
    for run in sorted(runs, key=lambda run: run.stage_path("train").stat().st_mtime, reverse=True):
        pace = pace_of(run)
        if pace is None:
            continue
        same = paces.by_shape[shape(pace.cfg, pace.gpu)]
        if len(same) < RUNS_PER_SHAPE:
            same.append(pace)
            paces.by_model[model_shape(pace.cfg, pace.gpu)].append(pace)
    return paces


def pace_of(run: Run) -> Pace | None:
    """One run's pace; None where its files do not say it."""
    try:
        cfg = with_original_defaults(with_fitting_batch(run, run.config()))
    except Refused:
        return None
    surroundings = (read_json(run.record_path) or {}).get("surroundings", {})
    rows = last_rows(run, STEPS_READ)
    if "device" not in surroundings or not is_trained(cfg) or not rows:
        return None
    gpu = gpu_by_driver_name(surroundings["device"])
    return Pace(
        cfg, gpu.name if gpu else None, statistics.median(sum(row.get(phase, 0.0) for phase in STEP_SECONDS) for row in rows),
        statistics.median(row["completion_tokens_mean"] for row in rows),
        statistics.fmean(row["sampling_rounds"] for row in rows),
    )  # fmt: skip


def with_original_defaults(cfg: Resolved) -> Resolved:
    """A configuration from before there was a choice says nothing: then steps were padded to their longest and scored twice."""
    before = {"micro_batches": "equal", "log_probabilities": "twice"}
    method = {"factored_norm": False} if "micro_batches" not in cfg["training"] else {}
    return cfg | {"training": before | cfg["training"], "peft": method | cfg["peft"]}
