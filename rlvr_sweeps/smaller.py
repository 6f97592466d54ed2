"""A training that ran out of memory is tried again with fewer completions per forward pass: more passes, the same batch."""

import copy
import re

from rlvr_sweeps.files import read_json, write_json
from rlvr_sweeps.identity import Resolved
from rlvr_sweeps.run import Run
from rlvr_sweeps.transient import said_since

OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|CUDA out of memory|DefaultCPUAllocator: can't allocate")


def fitted(run: Run, cfg: Resolved) -> Resolved:
    """The run's configuration with the completions per forward pass that earlier tries came down to."""
    known = read_json(run.per_device_path)
    if known is None:
        return cfg
    other = copy.deepcopy(cfg)
    other["training"]["per_device_batch_size"] = known
    return other


def shrink(run: Run, stage: str, since: int) -> str | None:
    """If the stage's failure, or its log from byte `since` on, says that a training found no memory: note fewer completions.

    Returns what was decided, in words; None where memory was not the reason, or where one completion is too many.
    """
    said = (read_json(run.failure_path) or {}).get("error", "") + said_since(run.log_path(stage), since)
    if stage != "train" or not OUT_OF_MEMORY.search(said):
        return None
    cfg = fitted(run, run.config())
    asked, processes = cfg["training"]["per_device_batch_size"], cfg["distributed"]["processes"]
    fewer = [rows for rows in range(1, asked // 2 + 1) if cfg["batch_size"] % (rows * processes) == 0]
    if not fewer:
        return None
    write_json(run.per_device_path, fewer[-1])
    return f"out of memory with {asked} completions per forward pass: {fewer[-1]} from now on, in more passes"
