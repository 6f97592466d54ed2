"""On a real Slurm: stopped, killed, cancelled or failed in the middle, and what becomes of it."""

import json
import os
import signal
import subprocess
import sys

import pytest

from rlvr_sweeps.files import read_rows
from tests.conftest import ROOT
from tests.slurm.conftest import SMALL, all_ended, events, job_of, live, numbers, only, queue, sh, steps, until, weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm is up: make test-slurm starts one"),
]


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory):
    """The same run by the local launcher, in one piece."""
    folder = tmp_path_factory.mktemp("local")
    command = [sys.executable, "launch.py", "-m", *SMALL, f"runs_dir={folder}/runs", f"hydra.sweep.dir={folder}/launch"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
    return only(folder / "runs")


def ask_and_resume(slurm, uninterrupted, disturb, after=5):
    """One run, disturbed once it has `after` steps; it must end as the uninterrupted one did."""
    slurm("wait=false")
    run = only(slurm.runs)
    until(lambda: steps(run) >= after)
    disturb(run)
    until(all_ended)
    assert run.state() == "done", (run.path / "failure.json").read_text() if run.failure_path.exists() else events(run, "start")
    assert weights(run) == weights(uninterrupted)
    assert numbers(run)[0] == numbers(uninterrupted)[0]
    return run


def test_notice_before_the_time_limit(slurm, uninterrupted):
    """USR2, as Slurm sends it: the trainer saves at the end of its step, and the job goes back into the queue."""
    run = ask_and_resume(slurm, uninterrupted, lambda run: sh("scancel", "--signal=USR2", "--full", job_of(run)))
    assert len(events(run, "requeue")) == 1
    first, second = (row["resumed_from"] for row in events(run, "train"))
    assert first is None and int(second.rpartition("-")[2]) >= 5  # its last step, not its last checkpoint
    assert events(run, "stopped")[0]["saved"] is True


def test_requeued_by_the_administrator(slurm, uninterrupted):
    run = ask_and_resume(slurm, uninterrupted, lambda run: sh("scontrol", "requeue", job_of(run)))
    assert len(events(run, "start")) == 3  # two for training, one for evaluation


def test_preempted_by_a_higher_partition(slurm, uninterrupted):
    def disturb(run):
        sh("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")

    ask_and_resume(slurm, uninterrupted, disturb)


@pytest.mark.parametrize("whom", ["the trainer", "the supervisor"])
def test_killed(slurm, uninterrupted, whom):
    """A killed trainer is started again in its job; after a killed supervisor the same command goes on."""

    def disturb(run):
        supervisor = events(run, "start")[-1]["pid"]
        os.kill(events(run, "train")[-1]["pid"] if whom == "the trainer" else supervisor, signal.SIGKILL)
        if whom == "the supervisor":
            until(all_ended)
            assert run.state() == "lost"
            slurm()

    run = ask_and_resume(slurm, uninterrupted, disturb)
    assert [row["why"] for row in events(run, "again")] == (["its process was killed"] if whom == "the trainer" else [])


def test_cancelled_while_running_and_while_waiting(slurm, uninterrupted):
    def disturb(run):
        sh("scancel", job_of(run))
        until(all_ended)
        assert run.state() == "lost"
        sh("scontrol", "update", "PartitionName=main", "State=DOWN")
        slurm()
        assert run.state(live=live()) == "queued"
        sh("scancel", "--me")
        until(all_ended)
        sh("scontrol", "update", "PartitionName=main", "State=UP")
        assert run.state(live=live()) == "lost"
        slurm()

    try:
        ask_and_resume(slurm, uninterrupted, disturb)
    finally:
        sh("scontrol", "update", "PartitionName=main", "State=UP")


def test_a_failure_looks_like_one(slurm, tmp_path):
    """A data set that is too small: FAILED in Slurm, its error in the table, its evaluation taken out of the queue."""
    few = tmp_path / "few.jsonl"
    few.write_text('{"question": "' + "long " * 200 + '", "answer": "1"}\n')
    slurm(f"data.path={few}", "data.problems=null")
    until(all_ended)
    run = only(slurm.runs)
    assert run.state() == "failed"
    shown = sh("scontrol", "show", "job", job_of(run))
    assert "JobState=FAILED" in shown
    rows = json.loads(sh(sys.executable, "-m", "rlvr_sweeps.cli", "status", str(slurm.runs), "--json"))
    assert "No problem of" in rows[0]["error"] and rows[0]["job"]
    assert "Traceback" in sh(sys.executable, "-m", "rlvr_sweeps.cli", "logs", str(run.path), "--stage", "train")
    said = slurm(f"data.path={few}", "data.problems=null").stdout
    assert "left alone (retry=true" in said and not queue()


def test_a_process_of_two_nodes_is_killed(slurm):
    """Both nodes start again from the last checkpoint, in the same job."""
    two = ("distributed=ddp", "distributed.processes=2", "training.per_device_batch_size=16", "cluster.train.nodes=2")
    slurm(*two, gpus=True)
    run = only(slurm.runs)
    until(lambda: steps(run) >= 5)
    os.kill(events(run, "train")[-1]["pid"], signal.SIGKILL)
    until(all_ended, 300)
    assert run.state() == "done", (run.path / "failure.json").read_text() if run.failure_path.exists() else events(run, "start")
    assert len(events(run, "again")) == 1 and [row["step"] for row in read_rows(run.metrics_path)] == list(range(1, 13))
