"""Launches on the real Slurm that `make test-slurm` starts: two virtual nodes with four pretended GPUs each, real training."""

import hashlib
import subprocess
import sys
import time

import pytest

from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import Run, all_runs
from tests.conftest import ROOT

# Twelve steps of a second, checkpoints every fourth, and an evaluation of one tier.
SMALL = (
    "algo=grpo", "steps=12", "batch_size=32", "training.save_every=4", "analysis=none", "benchmark.tier1.k=2",
    *(f"~benchmark.tier{tier}" for tier in (2, 3, 4, 5)),
)  # fmt: skip
NO_GPU = ("cluster.train.gpus_per_node=0", "cluster.evaluate.gpus_per_node=0")


def sh(*command, check=True):
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=60).stdout


def rlvr(*arguments, check=True):
    return sh(sys.executable, "-m", "rlvr_sweeps.cli", *arguments, check=check)


def queue():
    lines = sh("squeue", "--me", "-h", "-r", "-o", "%i|%T %r").splitlines()
    return dict(line.split("|") for line in lines)


def hasten():
    """Slurm starts a requeued job two minutes later, by a constant in its code: start it now."""
    for job, state in queue().items():
        if "BeginTime" in state:
            sh("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)


def until(condition, patience_s=300):
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited too long; the queue: {queue()}"
        hasten()
        time.sleep(0.3)


def all_ended():
    return not queue()


@pytest.fixture
def slurm(launch, tmp_path):
    """slurm(...) launches on the cluster into tmp_path/runs; nothing is left in the queue afterwards."""
    until(all_ended)

    def ordered(*arguments, gpus=False):
        grid = [argument for argument in arguments if argument == "-m"]  # before the overrides, as argparse wants it
        return *grid, "cluster=slurm", *SMALL, *(() if gpus else NO_GPU), *(one for one in arguments if one != "-m")

    def go(*arguments, gpus=False, **more):
        return launch(*ordered(*arguments, gpus=gpus), **more)

    go.runs, go.launch = launch.runs, launch
    go.command = lambda *arguments: launch.command(*ordered(*arguments))
    yield go
    sh("scancel", "--me", check=False)
    sh("scancel", "--me", "--signal=KILL", check=False)
    until(all_ended)


@pytest.fixture
def held(slurm):
    """The partition takes jobs and starts none, until held() is called."""
    sh("scontrol", "update", "PartitionName=main", "State=DOWN")

    def start():
        sh("scontrol", "update", "PartitionName=main", "State=UP")

    yield start
    sh("scancel", "--me", check=False)
    start()


@pytest.fixture(scope="session")
def uninterrupted(world, tmp_path_factory):
    """The run that faults disturb, by the local launcher, in one piece."""
    folder = tmp_path_factory.mktemp("local")
    command = [sys.executable, "launch.py", "-m", *SMALL, f"runs_dir={folder}/runs", f"hydra.sweep.dir={folder}/launch"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
    return only(folder / "runs")


@pytest.fixture
def survives(slurm, uninterrupted, record_property):
    """survives(fault, disturb): a run that `disturb` meets after its fifth step ends as the undisturbed one did, to the bit.

    What happened is recorded: `make faults` makes docs/reliability.md of it.
    """

    def check(fault, disturb, *arguments, after=5):
        slurm(*arguments)
        run = only(slurm.runs)
        until(lambda: steps(run) >= after)
        disturb(run)
        until(all_ended, 600)
        assert run.state() == "done", (read_json(run.failure_path), events(run, "start"))
        assert weights(run) == weights(uninterrupted)
        assert numbers(run)[0] == numbers(uninterrupted)[0]
        record(record_property, fault, happened(run))
        return run

    return check


def record(record_property, fault, outcome, times=1, runs=1, identical="yes"):
    for name, value in (("fault", fault), ("outcome", outcome), ("times", times), ("runs", runs), ("identical", identical)):
        record_property(name, value)


def happened(run):
    """How a run that was disturbed went on, by its own events."""
    starts, resumed = events(run, "start"), events(run, "train")[-1]["resumed_from"]
    if events(run, "requeue"):
        how = "saved at the end of its step and requeued itself"
    elif any(start["restarts"] for start in starts):
        how = "requeued by Slurm"
    elif events(run, "again"):
        how = "started again in its job"
    else:
        how = "the same command went on"
    return f"{how}, from step {resumed.rpartition('-')[2] if resumed else 0}"


def only(runs_dir) -> Run:
    (run,) = all_runs(runs_dir)
    return run


def steps(run):
    return len(read_rows(run.metrics_path))


def events(run, name):
    return [row for row in read_rows(run.attempts_path) if row["event"] == name]


def weights(run):
    return hashlib.sha256((run.merged_path / "model.safetensors").read_bytes()).hexdigest()


def numbers(run):
    """What training and evaluation said, without when and where."""
    rows = [{key: value for key, value in row.items() if not key.endswith("_s")} for row in read_rows(run.metrics_path)]
    summary = read_json(run.summary_path)
    return rows, {key: value for key, value in summary.items() if key not in ("finished", "train_seconds")}


def job_of(run):
    return run.jobs()["train"]


def trainer_of(run):
    return events(run, "train")[-1]["pid"]


def live():
    from rlvr_sweeps.launching.slurm import queue as module

    return module.active_jobs()
