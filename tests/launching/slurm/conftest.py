"""Fixtures for launches on the Slurm of `make test-slurm`: virtual nodes with four simulated GPUs each, and real training.

Each worker of pytest-xdist has its own partition of two nodes, so a test may close its partition, end a node or empty the
queue while other tests run.
"""

import fcntl
import hashlib
import os
import random
import subprocess
import sys
import time

import pytest

from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import Run, all_runs
from tests.conftest import ROOT

PARTITION = "test" + os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
# squeue and scancel are limited to the jobs of this partition, also in the launches of the tests.
os.environ |= {"SQUEUE_PARTITION": PARTITION, "SCANCEL_PARTITION": PARTITION}
# Twelve steps of less than a second, a checkpoint at every fourth, and an evaluation of one tier.
SMALL = (
    "algo=grpo", "steps=12", "batch_size=32", "training.save_every=4", "analysis=none", "benchmark.tier1.k=1",
    *(f"~benchmark.tier{tier}" for tier in (2, 3, 4, 5)),
)  # fmt: skip
NO_GPU = ("cluster.train.gpus_per_node=0", "cluster.evaluate.gpus_per_node=0")
REQUEUED_EVERY_S = 2.0
PATIENCE_S = 900.0  # for one event, on a machine whose cores are shared with other tests


def sh(*command, check=True):
    """Return the standard output of a command."""
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=120).stdout


def rlvr(*arguments, check=True):
    """Return the standard output of `rlvr`."""
    return sh(sys.executable, "-m", "rlvr_sweeps.cli", *arguments, check=check)


def queue():
    """Return the state and the reason of every job in the partition, by job id."""
    lines = sh("squeue", "--me", "-h", "-r", "-o", "%i|%T %r").splitlines()
    return dict(line.split("|") for line in lines)


def start_requeued():
    """Start requeued jobs at once: Slurm delays them by two minutes, a constant of its code."""
    for job, state in queue().items():
        if "BeginTime" in state:
            sh("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)


def wait_until(condition, pause_s=0.1):
    """Return when the condition holds; requeued jobs start meanwhile without delay."""
    begin = last_update = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now < begin + PATIENCE_S, f"waited for {PATIENCE_S:.0f} s; the queue: {queue()}"
        if now > last_update + REQUEUED_EVERY_S:
            start_requeued()
            last_update = time.monotonic()
        time.sleep(pause_s)


def wait_for_empty_queue():
    """Return when no job of the partition is queued or running."""
    wait_until(lambda: not queue(), pause_s=1.5)


@pytest.fixture
def slurm(launch):
    """Return a function that launches on the cluster into tmp_path/runs; the partition's queue is emptied afterwards."""
    wait_for_empty_queue()

    def overrides(*arguments, gpus=False):
        grid = [argument for argument in arguments if argument == "-m"]  # argparse requires it before the overrides
        points = [argument for argument in arguments if argument != "-m"]
        if not any(argument.startswith("hydra.launcher.partition=") for argument in points):
            points.append(f"hydra.launcher.partition={PARTITION}")
        return *grid, "cluster=slurm", *SMALL, *(() if gpus else NO_GPU), *points

    def start(*arguments, gpus=False, **options):
        return launch(*overrides(*arguments, gpus=gpus), **options)

    start.runs, start.launch = launch.runs, launch
    start.command = lambda *arguments: launch.command(*overrides(*arguments))
    yield start
    sh("scancel", "--me", check=False)
    sh("scancel", "--me", "--signal=KILL", check=False)
    wait_for_empty_queue()


@pytest.fixture
def closed_partition(slurm):
    """Close the partition, which then queues jobs and starts none; returns a function that opens it."""
    set_partition("DOWN")
    yield lambda: set_partition("UP")
    sh("scancel", "--me", check=False)
    set_partition("UP")


def set_partition(state):
    """Close (DOWN) or open (UP) this worker's partition."""
    sh("scontrol", "update", f"PartitionName={PARTITION}", f"State={state}")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Return a function that returns the run of SMALL by the local launcher, computed once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "undisturbed"

    def run():
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not all_runs(folder / "runs"):
                command = ["launch.py", "-m", *SMALL, f"runs_dir={folder}/runs", f"hydra.sweep.dir={folder}/launch"]
                subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE_S)
        return only_run(folder / "runs")

    return run


@pytest.fixture
def assert_survives(slurm, undisturbed, record_property):
    """Return a function that disturbs a run after some steps and asserts that it ends like the undisturbed one, to the bit.

    The outcome is recorded as properties of the test, from which `make faults` writes docs/reliability.md.
    """

    def check(fault, disturb, *arguments, after=5, times=1):
        slurm(*arguments)
        run = only_run(slurm.runs)
        wait_until(lambda: steps(run) >= after)
        disturb(run)
        wait_for_empty_queue()
        assert run.state() == "done", (read_json(run.failure_path), events(run, "start"))
        assert weights(run) == weights(undisturbed())
        assert numbers(run)[0] == numbers(undisturbed())[0]
        record(record_property, fault, outcome(run), times=times)
        return run

    return check


def record(record_property, fault, outcome, times=1, runs=1, identical="yes"):
    """Record one row of docs/reliability.md as properties of the test."""
    for name, value in (("fault", fault), ("outcome", outcome), ("times", times), ("runs", runs), ("identical", identical)):
        record_property(name, value)


def fault_seed():
    """Return the seed of random instants and faults, RLVR_FAULT_SEED if it is set, and print it."""
    seed = int(os.environ.get("RLVR_FAULT_SEED") or random.SystemRandom().randrange(1000))
    print(f"RLVR_FAULT_SEED={seed}")
    return seed


def outcome(run):
    """Describe, from its events, how a disturbed run continued."""
    starts, resumed = events(run, "start"), events(run, "train")[-1]["resumed_from"]
    submitted = {start["job"] for start in starts if start["stage"] == "train"}
    if events(run, "requeue"):
        how = "saved at the end of its step and requeued itself"
    elif any(start["restarts"] for start in starts):
        how = "requeued by Slurm"
    elif events(run, "again"):
        how = "started again in its job" + ("; then the same command went on" if len(submitted) > 1 else "")
    else:
        how = "the same command went on"
    return f"{how}, from step {resumed.rpartition('-')[2] if resumed else 0}"


def only_run(runs_dir) -> Run:
    """Return the folder's single run."""
    (run,) = all_runs(runs_dir)
    return run


def steps(run):
    """Return the number of steps that the run has completed."""
    return len(read_rows(run.metrics_path))


def events(run, name):
    """Return the run's events of one name, oldest first."""
    return [row for row in read_rows(run.attempts_path) if row["event"] == name]


def weights(run):
    """Return the hash of the trained weights."""
    return hashlib.sha256((run.merged_path / "model.safetensors").read_bytes()).hexdigest()


def numbers(run):
    """Return the rows of training and the summary of evaluation, without times."""
    rows = [{key: value for key, value in row.items() if not key.endswith("_s")} for row in read_rows(run.metrics_path)]
    summary = read_json(run.summary_path)
    return rows, {key: value for key, value in summary.items() if key not in ("finished", "train_seconds")}


def training_job(run):
    """Return the id of the run's training job."""
    return run.jobs()["train"]


def trainer_pid(run):
    """Return the process id of the run's latest trainer."""
    return events(run, "train")[-1]["pid"]
