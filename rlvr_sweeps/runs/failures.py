"""A training that ran out of memory is tried again with fewer completions per forward pass: more passes, the same batch."""

import copy
import re
import signal
from pathlib import Path
from typing import Any

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.files import read_json, write_json
from rlvr_sweeps.runs.directory import Run

OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|CUDA out of memory|DefaultCPUAllocator: can't allocate")


def with_fitting_batch(run: Run, cfg: Resolved) -> Resolved:
    """The run's configuration with the completions per forward pass that earlier tries came down to, asked as it is now."""
    known = read_json(run.per_device_path)
    if known is None or known["asked"] != requested_passes(cfg):
        return cfg
    other = copy.deepcopy(cfg)
    other["training"]["per_device_batch_size"] = known["fits"]
    return other


def requested_passes(cfg: Resolved) -> dict[str, Any]:
    """What an answer in per_device.json was to: with other settings the user's word counts again."""
    return {"per_device_batch_size": cfg["training"]["per_device_batch_size"], "processes": cfg["distributed"]["processes"]}


def reduce_batch_after_oom(run: Run, stage: str, since: int) -> str | None:
    """If the stage's failure, or its log from byte `since` on, says that a training found no memory: note fewer completions.

    Returns what was decided, in words; None where memory was not the reason, or where one completion is too many: then smaller
    passes were no cure, and the next launch begins as asked.
    """
    said = (read_json(run.failure_path) or {}).get("error", "") + log_since(run.log_path(stage), since)
    if stage != "train" or not OUT_OF_MEMORY.search(said):
        return None
    cfg = run.config()
    asked, processes = with_fitting_batch(run, cfg)["training"]["per_device_batch_size"], cfg["distributed"]["processes"]
    fewer = [rows for rows in range(1, asked // 2 + 1) if cfg["batch_size"] % (rows * processes) == 0]
    if not fewer:
        run.per_device_path.unlink(missing_ok=True)
        return None
    write_json(run.per_device_path, {"asked": requested_passes(cfg), "fits": fewer[-1]})
    return f"out of memory with {asked} completions per forward pass: {fewer[-1]} from now on, in more passes"


TRANSIENT = re.compile(
    r"NCCL error|ncclSystemError|uncorrectable ECC|Address already in use|Connection reset by peer|EADDRINUSE"
    r"|ProcessGroupNCCL.*timeout|CUDA error: an illegal instruction|Stale file handle"
)
TAIL = 20_000  # bytes of a log in which such words are looked for


def log_since(log: Path, since: int) -> str:
    """The end of what a log got from byte `since` on; nothing where there is no log."""
    return log.read_bytes()[since:][-TAIL:].decode(errors="replace") if log.exists() else ""


def transient_reason(status: int, log: Path, since: int) -> str | None:
    """The reason, from an exit code (negative for a signal) and what the log got from byte `since` on; None without one."""
    if status == -signal.SIGKILL:
        return "its process was killed"
    text = log_since(log, since)
    found = TRANSIENT.search(text)
    if found:
        return found.group()
    return "a process of several was killed" if "Signal 9 (SIGKILL)" in text else None
