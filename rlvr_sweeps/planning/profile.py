"""Where a training step's time goes: seconds by phase, and the operations in them against the machine's peak.

Operations are counted from the model's shapes: products and causal attention, of the tokens that a phase computes. Padding
counts as time, not as work. A CPU's peak is measured here, where the command runs; a GPU's is its data sheet's, in bfloat16.
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
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json
from rlvr_sweeps.planning.hardware import gpu_by_driver_name
from rlvr_sweeps.planning.timing import forward_operations, update_passes
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.reading import last_rows

STEPS = 32  # that are looked at, from the end
PEAK_PROGRAM = """
import time, numpy
one = numpy.ones((1024, 1024), numpy.float32)
one @ one
best = min((lambda start: (one @ one, time.perf_counter() - start)[1])(time.perf_counter()) for _ in range(20))
print(2 * 1024**3 / best)
"""


@dataclass(frozen=True)
class Phase:
    """One phase of a step, in one process."""

    name: str
    seconds: float  # median over the steps
    share: float  # of the step
    operations: float | None  # per step; None where none are counted, or the architecture is not known
    of_peak: float | None  # operations per second, over the peak's


@dataclass(frozen=True)
class Profile:
    run: str
    device: str
    peak: float | None  # operations per second
    steps: int
    step_s: float
    padding: float | None  # share of the update's positions
    phases: list[Phase]


def profile(run: Run) -> Profile:
    """Medians over a run's last steps. Refused for a run without steps, or from before phases were written."""
    cfg, rows = run.config(), last_rows(run, STEPS)
    rows = rows[1:] or rows  # the first step of an attempt waits for what is made once
    if not rows or "rest_s" not in rows[-1]:
        why = "was trained by a version that did not note its phases" if rows else "has no step yet"
        raise Refused(f"{run.name} {why}. Profile one that was trained with this version: rlvr status lists them.")
    rows = [row for row in rows if "rest_s" in row]
    device = (read_json(run.record_path) or {}).get("surroundings", {}).get("device")
    gpu = gpu_by_driver_name(device)
    peak = gpu.bf16_tflops * 1e12 if gpu else None if device else measured_peak()
    work = operations(cfg, rows, architecture(cfg))
    seconds = {
        "rollout": [row["rollout_s"] - row.get("sync_s", 0.0) for row in rows],
        "sync": [row.get("sync_s", 0.0) for row in rows],
        "reward": [row["reward_s"] for row in rows],
        "log-probabilities": [row["logprobs_s"] for row in rows],
        "update": [row["update_s"] for row in rows],
        "rest": [row["rest_s"] for row in rows],
    }
    middle = {name: median(values) for name, values in seconds.items()}
    whole = sum(middle.values())
    phases = []
    for name, value in middle.items():
        done = work.get(name)
        known = done is not None and peak is not None and value > 0
        phases.append(Phase(name, value, value / whole, done, (done or 0.0) / value / (peak or 1.0) if known else None))
    computed, useful = (sum(row.get(key, 0) for row in rows) for key in ("update_positions", "update_tokens"))
    padding = 1 - useful / computed if computed else None
    return Profile(run.name, device or "CPU, one core", peak, len(rows), whole, padding, phases)


def operations(cfg: Resolved, rows: list[dict[str, Any]], model: Architecture | None) -> dict[str, float]:
    """Per step and process, by phase; empty where the architecture is not known here."""
    if model is None or base_parameters(model) is None:
        return {}
    processes, size = cfg["distributed"]["processes"], cfg["rollout"]["group_size"]
    sampled = fmean(row["sampled_groups"] for row in rows) * size / processes
    answer = fmean(row["completion_tokens_mean"] for row in rows)
    trained = cfg["batch_size"] / processes
    tokens = fmean(row["update_tokens"] for row in rows) / trained
    forward = forward_operations(model, trained, tokens, tokens**2)
    prompt = max(0.0, tokens - answer)
    read = prompt / size if cfg["rollout"]["engine"] == "vllm" else prompt  # vLLM reads a group's prompt once
    rollout = forward_operations(model, sampled, read + answer, (prompt + answer) ** 2 - (1 - read / (prompt or 1)) * prompt**2)
    found = {"rollout": rollout, "update": forward * update_passes(cfg)}
    return found | ({"log-probabilities": forward} if any(row["logprobs_s"] for row in rows) else {})


def measured_peak() -> float:
    """float32 operations per second of one core here: the best of twenty products of 1,024 × 1,024 matrices."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run([sys.executable, "-c", PEAK_PROGRAM], env=environ | one, capture_output=True, text=True, check=True)
    return float(done.stdout)


def as_dict(found: Profile) -> dict[str, Any]:
    return asdict(found)


def show(found: Profile, console: Console) -> None:
    device = f"{found.device}, peak {found.peak / 1e12:.3g} TFLOP/s" if found.peak else found.device
    console.print(f"{found.run}: {found.step_s:.3g} s per step on {device}; medians of {found.steps} steps", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "seconds", "of the step", "GFLOP", "of the peak"):
        table.add_column(name, justify="right" if name else "left")
    for phase in found.phases:
        counted = "-" if phase.operations is None else f"{phase.operations / 1e9:,.4g}"
        reached = "-" if phase.of_peak is None else f"{100 * phase.of_peak:.1f} %"
        table.add_row(phase.name, f"{phase.seconds:,.3f}", f"{100 * phase.share:.0f} %", counted, reached)
    console.print(table)
    if found.padding is not None:
        console.print(f"{100 * found.padding:.0f} % of the update's positions are padding", highlight=False)
