"""On a real Slurm: faults of every kind at random moments on runs of one grid, until they are done all the same."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter

import pytest

from rlvr_sweeps.runs.directory import all_runs
from tests.launching.slurm.conftest import SMALL, events, hasten, job_of, numbers, queue, record, sh, trainer_of, weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm is up: make faults starts one"),
]
FAULTS = {
    "kill -9 of a trainer": lambda run: os.kill(trainer_of(run), signal.SIGKILL),
    "kill -9 of a supervisor": lambda run: os.kill(events(run, "start")[-1]["pid"], signal.SIGKILL),
    "scontrol requeue": lambda run: sh("scontrol", "requeue", job_of(run)),
    "scancel": lambda run: sh("scancel", job_of(run)),
    "USR2": lambda run: sh("timeout", "10", "scancel", "--signal=USR2", "--full", job_of(run)),
}
COUNT = 20
GRID = ("-m", "peft=lora,dora", "seed=1,2", "cluster.retries=10")


def test_a_storm(slurm, tmp_path, record_property):
    slurm.launch("-m", "cluster=local", *SMALL, *GRID[1:], runs=tmp_path / "local")
    whole = {run.name: run for run in all_runs(tmp_path / "local")}
    slurm(*GRID)
    dice, injected = random.Random(int(os.environ.get("RLVR_FAULT_SEED", "0"))), Counter()
    deadline = time.monotonic() + 1500
    while any(run.state() != "done" for run in all_runs(slurm.runs)):
        assert time.monotonic() < deadline, (injected, queue())
        time.sleep(dice.uniform(1, 4))
        hasten()
        if not queue():
            slurm(*GRID, "retry=true")
        training = [run for run in all_runs(slurm.runs) if run.state() == "running" and not run.stage_path("train").exists()]
        begun = [run for run in training if events(run, "train")]
        if begun and injected.total() < COUNT:
            fault, run = dice.choice(sorted(FAULTS)), dice.choice(begun)
            with contextlib.suppress(ProcessLookupError, subprocess.CalledProcessError):  # it ended a moment before
                FAULTS[fault](run)
                injected[fault] += 1
    runs = all_runs(slurm.runs)
    assert {run.name for run in runs} == set(whole)
    for run in runs:
        assert weights(run) == weights(whole[run.name]) and numbers(run) == numbers(whole[run.name]), run.name
    assert injected, "the storm never came"
    kinds = ", ".join(f"{count} × {fault}" for fault, count in sorted(injected.items()))
    record(record_property, "a storm at random moments", kinds, times=injected.total(), runs=len(runs))
