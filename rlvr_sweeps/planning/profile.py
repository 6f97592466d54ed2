"""Profile a training step: seconds by phase, and the operations of each phase relative to the machine's peak.

Operations are counted from the model's shapes: products and causal attention of the tokens that a phase computes; padding takes
time but does not count as operations. A GPU's peak is that of its data sheet in bfloat16; a CPU's is measured on the machine
that runs the command, with as many threads as the run had.
"""

import subprocess
import sys
from dataclasses import asdict, dataclass
from os import environ
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from rlvr_sweeps.assets.architecture import Architecture, architecture, base_parameters
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import completions_per_row, steps_per_call
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_object
from rlvr_sweeps.planning.hardware import gpu_by_driver_name
from rlvr_sweeps.planning.measured import over_calls
from rlvr_sweeps.planning.timing import forward_operations, update_passes
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.reading import last_rows

STEPS = 32  # last steps of a run that are read
PEAK_PROGRAM = """
import time, numpy
matrix = numpy.ones((1024, 1024), numpy.float32)
matrix @ matrix
best = min((lambda start: (matrix @ matrix, time.perf_counter() - start)[1])(time.perf_counter()) for _ in range(20))
print(2 * 1024**3 / best)
"""


@dataclass(frozen=True)
class Phase:
    """One phase of a step, in one process."""

    name: str
    seconds: float  # median over the steps
    share: float  # of the step's seconds
    operations: float | None  # per step; None for phases without counted operations, and for unknown architectures
    of_peak: float | None  # operations per second, divided by the peak


@dataclass(frozen=True)
class Profile:
    """Phases of a training step: medians over the last steps of a run."""

    run: str  # name of the run
    device: str
    peak: float | None  # operations per second
    steps: int  # number of steps that were read
    step_s: float  # sum of the phases' medians
    padding: float | None  # share of padding in the positions of the updates
    phases: list[Phase]


def profile(run: Run) -> Profile:
    """Return the profile of a run's last steps; raise Refused for a run without steps or without recorded phases."""
    cfg, rows = run.config(), last_rows(run, STEPS, ())
    rows = rows[1:] or rows  # the first step of an attempt includes one-time work
    if not rows or "rest_s" not in rows[-1]:
        why = "was trained by a version that did not note its phases" if rows else "has no step yet"
        raise Refused(f"{run.name} {why}. Profile another run; rlvr status {run.path.parent} lists them.")
    rows = [row for row in rows if "rest_s" in row]
    surroundings = (read_object(run.record_path) or {}).get("surroundings", {})
    device, threads = surroundings.get("device"), int(surroundings.get("threads", 1))
    gpu = gpu_by_driver_name(device)
    peak = gpu.bf16_tflops * 1e12 if gpu else None if device else measured_peak(threads)
    work = operations(cfg, rows, architecture(cfg))
    seconds = {
        "rollout": [row["rollout_s"] - row.get("sync_s", 0.0) for row in rows],
        "sync": [row.get("sync_s", 0.0) for row in rows],
        "reward": [row["reward_s"] for row in rows],
        "log-probabilities": [row["logprobs_s"] for row in rows],
        "update": [row["update_s"] for row in rows],
        "rest": [row["rest_s"] for row in rows],
    }
    medians = {name: median(over_calls(values, steps_per_call(cfg))) for name, values in seconds.items()}
    step_s = sum(medians.values())
    phases = []
    for name, value in medians.items():
        count = work.get(name)
        known = count is not None and peak is not None and value > 0
        phases.append(Phase(name, value, value / step_s, count, (count or 0.0) / value / (peak or 1.0) if known else None))
    computed, useful = (sum(row.get(key, 0) for row in rows) for key in ("update_positions", "update_tokens"))
    padding = 1 - useful / computed if computed else None
    cores = "one core" if threads == 1 else f"{threads} cores"
    return Profile(run.name, device or f"CPU, {cores}", peak, len(rows), step_s, padding, phases)


def operations(cfg: Resolved, rows: list[dict[str, Any]], model: Architecture | None) -> dict[str, float]:
    """Return the operations per step and process, by phase; empty where the architecture is not known."""
    if model is None or base_parameters(model) is None:
        return {}
    processes, size = cfg["distributed"]["processes"], cfg["rollout"]["group_size"]
    answer = fmean(row["completion_tokens_mean"] for row in rows)
    discarded = fmean(row.get("discarded_tokens", 0) for row in rows) / (answer or 1)  # as completions of mean length
    sampled = (fmean(row["sampled_groups"] for row in rows) * size + discarded) / processes
    trained = cfg["batch_size"] / processes
    tokens = fmean(row["update_tokens"] for row in rows) / trained
    forward = forward_operations(model, trained, tokens, tokens**2)
    prompt = max(0.0, tokens - answer) * completions_per_row(cfg)
    read = prompt / size  # the sampler computes a group's prompt once
    rollout = forward_operations(model, sampled, read + answer, (prompt + answer) ** 2 - (1 - read / (prompt or 1)) * prompt**2)
    by_phase = {"rollout": rollout, "update": forward * update_passes(cfg)}
    return by_phase | ({"log-probabilities": forward} if any(row["logprobs_s"] for row in rows) else {})


def measured_peak(threads: int = 1) -> float:
    """Return the float32 operations per second of `threads` cores: the best of twenty products of 1,024 × 1,024 matrices."""
    limit = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    process = subprocess.run(
        [sys.executable, "-c", PEAK_PROGRAM], env=environ | limit, capture_output=True, text=True, check=True
    )
    return float(process.stdout)


def as_dict(result: Profile) -> dict[str, Any]:
    """Return the profile as plain data, for JSON."""
    return asdict(result)


def show(result: Profile, console: Console) -> None:
    """Print the profile as a table."""
    device = f"{result.device}, peak {result.peak / 1e12:.3g} TFLOP/s" if result.peak else result.device
    console.print(f"{result.run}: {result.step_s:.3g} s per step on {device}; medians of {result.steps} steps", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "seconds", "of the step", "GFLOP", "of the peak"):
        table.add_column(name, justify="right" if name else "left")
    for phase in result.phases:
        counted = "-" if phase.operations is None else f"{phase.operations / 1e9:,.4g}"
        reached = "-" if phase.of_peak is None else f"{100 * phase.of_peak:.1f} %"
        table.add_row(phase.name, f"{phase.seconds:,.3f}", f"{100 * phase.share:.0f} %", counted, reached)
    console.print(table)
    if result.padding is not None:
        console.print(f"{100 * result.padding:.0f} % of the update's positions are padding", highlight=False)
