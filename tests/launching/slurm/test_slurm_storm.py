"""Test on a real Slurm that the runs of a grid are completed although faults of every kind are injected at random times."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter

import pytest

from rlvr_sweeps.runs.directory import all_runs
from tests.launching.slurm.conftest import (
    SMALL,
    events,
    fault_seed,
    numbers,
    queue,
    record,
    sh,
    start_requeued,
    trainer_pid,
    training_job,
    weights,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.exhaustive,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm is running: make faults starts one"),
]
FAULTS = {
    "kill -9 of a trainer": lambda run: os.kill(trainer_pid(run), signal.SIGKILL),
    "kill -9 of a supervisor": lambda run: os.kill(events(run, "start")[-1]["pid"], signal.SIGKILL),
    "scontrol requeue": lambda run: sh("scontrol", "requeue", training_job(run)),
    "scancel": lambda run: sh("scancel", training_job(run)),
    "USR2": lambda run: sh("timeout", "10", "scancel", "--signal=USR2", "--full", training_job(run)),
}
COUNT = 40
GRID = ("-m", "peft=lora,dora", "seed=1,2", "cluster.retries=10")


def test_all_runs_are_completed_despite_random_faults(slurm, tmp_path, record_property):
    slurm.launch("-m", "cluster=local", *SMALL, *GRID[1:], runs=tmp_path / "local")
    local_runs = {run.name: run for run in all_runs(tmp_path / "local")}
    slurm(*GRID)
    seed, injected = fault_seed(), Counter()
    generator = random.Random(seed)
    deadline = time.monotonic() + 1500
    while any(run.state() != "done" for run in all_runs(slurm.runs)):
        assert time.monotonic() < deadline, (injected, queue())
        time.sleep(generator.uniform(1, 4))
        start_requeued()
        if not queue():
            slurm(*GRID, "retry=true")
        unfinished = [run for run in all_runs(slurm.runs) if run.state() == "running" and not run.stage_path("train").exists()]
        training = [run for run in unfinished if events(run, "train")]
        if training and injected.total() < COUNT:
            fault, run = generator.choice(sorted(FAULTS)), generator.choice(training)
            with contextlib.suppress(ProcessLookupError, subprocess.CalledProcessError):  # the process or job has just ended
                FAULTS[fault](run)
                injected[fault] += 1
    runs = all_runs(slurm.runs)
    assert {run.name for run in runs} == set(local_runs)
    for run in runs:
        assert weights(run) == weights(local_runs[run.name]) and numbers(run) == numbers(local_runs[run.name]), run.name
    assert injected, "no fault was injected"
    kinds = ", ".join(f"{count} × {fault}" for fault, count in sorted(injected.items())) + f" (seed {seed})"
    record(record_property, "a storm at random moments", kinds, times=injected.total(), runs=len(runs))
