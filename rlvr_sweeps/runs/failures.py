"""Decide which failed stages are tried again.

A training that ran out of memory is tried again with fewer completions per forward pass (more passes, the same batch), a stage
that failed for a transient reason as it is.
"""

import copy
import re
import signal
from pathlib import Path
from typing import Any

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.files import read_object, write_json
from rlvr_sweeps.runs.directory import Run

OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|CUDA out of memory|DefaultCPUAllocator: can't allocate")


def with_fitting_batch(run: Run, cfg: Resolved) -> Resolved:
    """Return the configuration with the per-device batch that earlier tries reduced it to, for the same requested values."""
    recorded = read_object(run.per_device_path, "asked", "fits")
    if recorded is None or recorded["asked"] != requested_passes(cfg):
        return cfg
    fitting = copy.deepcopy(cfg)
    fitting["training"]["per_device_batch_size"] = recorded["fits"]
    return fitting


def requested_passes(cfg: Resolved) -> dict[str, Any]:
    """Return the settings for which per_device.json holds; with others the configured per-device batch is used again."""
    return {"per_device_batch_size": cfg["training"]["per_device_batch_size"], "processes": cfg["distributed"]["processes"]}


def reduce_batch_after_oom(run: Run, stage: str, since: int) -> str | None:
    """Record a smaller per-device batch where the error, or the log from byte `since` on, shows an out-of-memory error.

    Returns a sentence for the log. Returns None where memory was not the reason, and where no smaller batch exists: the record
    is then deleted, and the next launch starts with the configured per-device batch.
    """
    output = str((run.failure() or {}).get("error", "")) + log_since(run.log_path(stage), since)
    if stage != "train" or not OUT_OF_MEMORY.search(output):
        return None
    cfg = run.config()
    current, processes = with_fitting_batch(run, cfg)["training"]["per_device_batch_size"], cfg["distributed"]["processes"]
    fewer = [rows for rows in range(1, current // 2 + 1) if cfg["batch_size"] % (rows * processes) == 0]
    if not fewer:
        run.per_device_path.unlink(missing_ok=True)
        return None
    write_json(run.per_device_path, {"asked": requested_passes(cfg), "fits": fewer[-1]})
    return f"out of memory with {current} completions per forward pass: {fewer[-1]} from now on, in more passes"


TRANSIENT = re.compile(
    r"NCCL error|ncclSystemError|uncorrectable ECC|Address already in use|Connection reset by peer|EADDRINUSE"
    r"|ProcessGroupNCCL.*timeout|CUDA error: an illegal instruction|Stale file handle"
)
TAIL = 20_000  # bytes at the end of a log that are searched


def log_since(log: Path, since: int) -> str:
    """Return the end of a log, from byte `since` on and at most TAIL bytes; empty where there is no log."""
    return log.read_bytes()[since:][-TAIL:].decode(errors="replace") if log.exists() else ""


def transient_reason(status: int, log: Path, since: int) -> str | None:
    """Return why a stage may succeed when it is tried again, or None.

    `status`: its exit code, negative for a signal. `since`: the byte of the log at which this try began.
    """
    if status == -signal.SIGKILL:
        return "its process was killed"
    text = log_since(log, since)
    match = TRANSIENT.search(text)
    if match:
        return match.group()
    return "a process of several was killed" if "Signal 9 (SIGKILL)" in text else None
