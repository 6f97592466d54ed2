"""Launches on the real Slurm that `make test-slurm` starts: two virtual nodes with four pretended GPUs each, real training."""

import hashlib
import subprocess
import time

import pytest

from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.run import Run, all_runs

# Twelve steps of a second, checkpoints every fourth, and an evaluation of one tier.
SMALL = (
    "algo=grpo", "steps=12", "batch_size=32", "training.save_every=4", "benchmark.tier1.k=2",
    *(f"~benchmark.tier{tier}" for tier in (2, 3, 4, 5)),
)  # fmt: skip
NO_GPU = ("cluster.train.gpus_per_node=0", "cluster.evaluate.gpus_per_node=0")


def sh(*command, check=True):
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=60).stdout


def queue():
    lines = sh("squeue", "--me", "-h", "-r", "-o", "%i|%T %r").splitlines()
    return dict(line.split("|") for line in lines)


def hasten():
    """Slurm starts a requeued job two minutes later, by a constant in its code: start it now."""
    for job, state in queue().items():
        if "BeginTime" in state:
            sh("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)


def until(condition, patience_s=180):
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


def live():
    from rlvr_sweeps import slurm as module

    return module.live()
