"""Read the pace of finished runs (seconds per step, completion lengths), grouped by the settings that determine it."""

import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained, rank_of, samples_at_once, sampling_precision, steps_per_call, training_of
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_object
from rlvr_sweeps.planning.hardware import gpu_by_driver_name
from rlvr_sweeps.runs.directory import Run, all_runs
from rlvr_sweeps.runs.failures import with_fitting_batch
from rlvr_sweeps.runs.reading import STEP_SECONDS, last_rows

STEPS_READ = 32  # last steps of a run that are read
RUNS_PER_SHAPE = 3  # newest runs of a shape that are read


@dataclass(frozen=True)
class Pace:
    """Pace of one finished run over its last steps, its GPU and its configuration."""

    cfg: Resolved
    gpu: str | None  # a name of conf/hardware.yaml; None: no GPU, or one of unknown kind
    step_s: float  # median seconds per step
    completion: float  # median of the mean completion length of a step, in tokens
    rounds: float  # mean number of sampling rounds per step


@dataclass
class Paces:
    """The paces of finished runs, by shape and by model."""

    by_shape: dict[Hashable, list[Pace]] = field(default_factory=lambda: defaultdict(list))
    by_model: dict[Hashable, list[Pace]] = field(default_factory=lambda: defaultdict(list))


def shape(cfg: Resolved, gpu: str | None) -> tuple[Hashable, ...]:
    """Return the settings on which the seconds per step depend; seed and learning rate are not among them."""
    method = cfg["peft"]
    return (
        *model_shape(cfg, gpu), *layout(cfg), method["name"], rank_of(cfg), cfg["dropout"] > 0,
        repr(method["config"].get("target_modules")), method.get("factored_norm", True), cfg["batch_size"],
        cfg["rollout"]["group_size"], cfg["rollout"]["temperature"], repr(cfg["rollout"]["trl"]),
        cfg["algo"]["sampling_rounds"], sampling_precision(cfg, "rollout"), cfg["training"]["per_device_batch_size"],
        cfg["training"]["gradient_checkpointing"],
        training_of(cfg, "micro_batches"), training_of(cfg, "log_probabilities"), cfg["cluster"].get("runs_per_gpu", 1),
        samples_at_once(cfg), steps_per_call(cfg),
    )  # fmt: skip


def model_shape(cfg: Resolved, gpu: str | None) -> tuple[Hashable, ...]:
    """Return the settings on which completion lengths, and the time model's error on a machine, depend."""
    return (
        gpu, cfg["model"]["name"], cfg["model"]["path"], cfg["model"]["autocast_bf16"], cfg["data"]["path"],
        cfg["rollout"]["engine"], cfg["rollout"]["max_tokens"],
    )  # fmt: skip


def layout(cfg: Resolved) -> tuple[str, int]:
    """Return the name and the number of processes of the distributed setup."""
    return cfg["distributed"]["name"], cfg["distributed"]["processes"]


def read_paces(folders: Iterable[str]) -> Paces:
    """Return the paces of the finished runs in some runs folders: of each shape the newest RUNS_PER_SHAPE."""
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
    """Return one run's pace; None where it is untrained, edited or damaged, or where its files lack a value."""
    try:
        cfg = with_original_defaults(with_fitting_batch(run, run.config()))
        surroundings = (read_object(run.record_path) or {}).get("surroundings", {})
        rows = last_rows(run, STEPS_READ, ("completion_tokens_mean", "sampling_rounds"))
    except Refused:  # the pace is an estimate from other runs; rlvr status names the damaged file
        return None
    if "device" not in surroundings or not is_trained(cfg) or not rows:
        return None
    gpu = gpu_by_driver_name(surroundings["device"])
    seconds = [sum(row.get(phase, 0.0) for phase in STEP_SECONDS) for row in rows]
    return Pace(
        cfg, gpu.name if gpu else None, statistics.median(over_calls(seconds, steps_per_call(cfg))),
        statistics.median(row["completion_tokens_mean"] for row in rows),
        statistics.fmean(row["sampling_rounds"] for row in rows),
    )  # fmt: skip


def over_calls(values: Sequence[float], steps: int) -> Sequence[float]:
    """Return the mean over the steps of each call of the sampler, since only its first step waits for it.

    The oldest values, which do not fill a call, are left out.
    """
    first = len(values) % steps
    return [statistics.fmean(values[index : index + steps]) for index in range(first, len(values), steps)] or values


def with_original_defaults(cfg: Resolved) -> Resolved:
    """Fill in how a run was computed if its stored configuration lacks these settings: padded, scored twice, PEFT's norm."""
    training = {"micro_batches": "equal", "log_probabilities": "twice"}
    method = {"factored_norm": False} if "micro_batches" not in cfg["training"] else {}
    return cfg | {"training": training | cfg["training"], "peft": method | cfg["peft"]}
