"""On a real Slurm: stopped, killed, cancelled or failed in the middle, and what becomes of it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from rlvr_sweeps.files import read_json
from tests.conftest import ROOT
from tests.launching.slurm.conftest import (
    SMALL,
    all_ended,
    events,
    happened,
    job_of,
    live,
    numbers,
    only,
    queue,
    record,
    rlvr,
    sh,
    steps,
    trainer_of,
    until,
    weights,
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm is up: make test-slurm starts one"),
]


@pytest.mark.twice
def test_notice_before_the_time_limit(survives):
    """USR2 to all that a job has, its shell too: the trainer saves at the end of its step, the job goes back into the queue."""
    run = survives("USR2 to the whole job", lambda run: sh("scancel", "--signal=USR2", "--full", job_of(run)))
    assert len(events(run, "requeue")) == 1
    first, second = (row["resumed_from"] for row in events(run, "train"))
    assert first is None and int(second.rpartition("-")[2]) >= 5  # its last step, not its last checkpoint
    assert events(run, "stopped")[0]["saved"] is True


def test_the_time_limit_itself(survives):
    """Two minutes with notice of one, both kept by Slurm; the trainer hangs until it is told."""

    def disturb(run):
        os.kill(trainer_of(run), signal.SIGSTOP)
        until(run.stop_path.exists)
        os.kill(trainer_of(run), signal.SIGCONT)

    limit = ("cluster.train.timeout_min=2", "hydra.launcher.signal_delay_s=60")
    run = survives("time limit, notice from Slurm", disturb, *limit)
    assert events(run, "requeue") and events(run, "stopped")[0]["signal"] == "SIGUSR2"


@pytest.mark.long
def test_the_time_limit_without_an_answer(survives, slurm):
    """A step that outlasts a short notice: Slurm ends the job, and the same command goes on."""
    limit = ("cluster.train.timeout_min=2", "hydra.launcher.signal_delay_s=5")

    def disturb(run):
        trainer = trainer_of(run)

        def hangs():  # again and again: Slurm wakes stopped processes before it ends them
            with contextlib.suppress(ProcessLookupError):
                os.kill(trainer, signal.SIGSTOP)
            return all_ended()

        until(hangs)
        assert "JobState=TIMEOUT" in sh("scontrol", "show", "job", job_of(run))
        assert run.state(live=live()) == "lost"
        slurm(*limit)

    survives("time limit, no answer in time", disturb, *limit, after=1)


@pytest.mark.twice
def test_requeued_by_the_administrator(survives):
    run = survives("scontrol requeue", lambda run: sh("scontrol", "requeue", job_of(run)))
    assert len(events(run, "start")) == 3  # two for training, one for evaluation


def test_preempted_by_a_higher_partition(survives):
    def disturb(run):
        sh("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")

    survives("preemption by a higher partition", disturb)


def test_a_node_is_lost(survives):
    """Its slurmd is killed, its trainer hangs and lives on: Slurm starts the job elsewhere, and the old attempt yields."""

    def disturb(run):
        node = events(run, "start")[-1]["node_name"]
        pid = Path(os.environ["SLURM_TEST_ROOT"], "run", f"slurmd.{node}.pid")
        os.kill(int(pid.read_text()), signal.SIGKILL)
        os.kill(trainer_of(run), signal.SIGSTOP)
        until(lambda: read_json(run.attempt_path)["attempt"] == 2)

    try:
        run = survives("a node goes down under the run", disturb)
    finally:
        subprocess.run([ROOT / "tests/launching/slurm/up.sh"], check=True, capture_output=True, timeout=120)
    first, second, *_ = (start["node_name"] for start in events(run, "start"))
    assert first != second


@pytest.mark.twice
@pytest.mark.parametrize("whom", ["the trainer", "the supervisor"])
def test_killed(survives, slurm, whom):
    """A killed trainer is started again in its job; after a killed supervisor the same command goes on."""

    def disturb(run):
        supervisor = events(run, "start")[-1]["pid"]
        os.kill(trainer_of(run) if whom == "the trainer" else supervisor, signal.SIGKILL)
        if whom == "the supervisor":
            until(all_ended)
            assert run.state() == "lost"
            slurm()

    run = survives(f"kill -9 of {whom}", disturb)
    assert [row["why"] for row in events(run, "again")] == (["its process was killed"] if whom == "the trainer" else [])


def test_a_process_of_two_nodes_is_killed(slurm, held, tmp_path, record_property):
    """Both nodes start again in the same job, as after a taken port; two processes of one machine end with the same bits."""
    two = ("distributed=ddp", "distributed.processes=2", "training.per_device_batch_size=16")
    slurm(*two, "cluster.train.nodes=2", gpus=True)
    run = only(slurm.runs)
    with socket.create_server(("", 20_000 + int(job_of(run)) % 30_000)):  # the port they would meet at: they take another
        held()
        until(lambda: steps(run) >= 5)
    os.kill(trainer_of(run), signal.SIGKILL)
    slurm.launch("cluster=local", *SMALL, *two, runs=tmp_path / "local")
    whole = only(tmp_path / "local")
    until(all_ended)
    assert run.state() == "done", (read_json(run.failure_path), events(run, "start"))
    assert [row["why"] for row in events(run, "again")] == ["EADDRINUSE", "a process of several was killed"]
    assert weights(run) == weights(whole) and numbers(run)[0] == numbers(whole)[0]
    record(record_property, "a taken port, then kill -9 of a rank of two nodes", happened(run), times=2)


@pytest.mark.twice
def test_cancelled_while_running_and_while_waiting(survives, slurm):
    def disturb(run):
        sh("scancel", job_of(run))
        until(all_ended)
        assert run.state() == "lost"
        (row,) = json.loads(rlvr("status", str(run.path.parent), "--json"))
        assert ("CANCELLED" if os.environ["SLURM_DBD"] == "1" else "ended") in row["error"]
        sh("scontrol", "update", "PartitionName=main", "State=DOWN")
        slurm()
        assert run.state(live=live()) == "queued"
        sh("scancel", "--me")
        until(all_ended)
        sh("scontrol", "update", "PartitionName=main", "State=UP")
        assert run.state(live=live()) == "lost"
        slurm()

    try:
        survives("scancel, running and then waiting", disturb)
    finally:
        sh("scontrol", "update", "PartitionName=main", "State=UP")


def test_the_disk_is_full(survives, slurm):
    """The run says so, in its own folder; with room again it goes on."""

    ballast = slurm.runs / "ballast"

    def fill():
        with pytest.raises(OSError, match="No space left"), ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(65536))

    def disturb(run):
        fill()
        until(all_ended)
        assert run.state() == "failed"
        (row,) = json.loads(rlvr("status", str(slurm.runs), "--json"))
        assert "No space left on device" in row["error"]
        fill()
        refused = slurm("retry=true", expect=1)
        assert "No space left on device" in refused.stderr + refused.stdout
        ballast.unlink()
        slurm("retry=true")

    slurm.runs.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(slurm.runs))
    try:
        survives("the disk fills up", disturb)
    finally:
        sh("umount", "--lazy", str(slurm.runs))


@pytest.mark.twice
def test_a_failure_looks_like_one(slurm, tmp_path, record_property):
    """A data set that is too small: FAILED in Slurm, its error in the table, its evaluation taken out of the queue."""
    few = tmp_path / "few.jsonl"
    few.write_text('{"question": "' + "long " * 200 + '", "answer": "1"}\n')
    slurm(f"data.path={few}", "data.problems=null")
    until(all_ended)
    run = only(slurm.runs)
    assert run.state() == "failed"
    shown = sh("scontrol", "show", "job", job_of(run))
    assert "JobState=FAILED" in shown
    if os.environ["SLURM_DBD"] == "1":
        until(lambda: sh("sacct", "-n", "-X", "-P", "-o", "State", "-j", job_of(run)).strip() == "FAILED", 30)
    rows = json.loads(rlvr("status", str(slurm.runs), "--json"))
    assert "No problem of" in rows[0]["error"] and rows[0]["job"]
    assert "Traceback" in rlvr("logs", str(run.path), "--stage", "train")
    said = slurm(f"data.path={few}", "data.problems=null").stdout
    assert "left alone (retry=true" in said and not queue()
    record(record_property, "an exception in the run", "FAILED in Slurm, its error in the table", identical="-")
