"""Decide how many threads each process of a run has.

Sums in another order round differently, so a run repeats bit for bit only with the number of threads that it began with. It is
recorded in train.json, and a run that continues keeps it.
"""

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.files import read_object
from rlvr_sweeps.runs.directory import Run

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def thread_count(run: Run, cfg: Resolved, cores: int) -> int:
    """Return the threads of each process of a run that has `cores` cores of a machine without a GPU.

    These are `cluster.threads` where it is set, else those that the run began with (one, where its train.json names none), else
    the cores per process.
    """
    if threads := cfg["cluster"].get("threads"):
        return int(threads)
    if record := read_object(run.record_path):
        return int(record.get("surroundings", {}).get("threads", 1))
    return max(1, cores // int(cfg["distributed"]["processes"]))
