"""Test on a real Slurm that a run that is stopped, killed or cancelled continues, and that a failed run reports its error."""

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from rlvr_sweeps.files import read_json
from rlvr_sweeps.launching.slurm.queue import active_jobs
from tests.conftest import ROOT
from tests.launching.slurm.conftest import (
    SMALL,
    events,
    numbers,
    only_run,
    outcome,
    queue,
    record,
    rlvr,
    set_partition,
    sh,
    steps,
    trainer_pid,
    training_job,
    wait_for_empty_queue,
    wait_until,
    weights,
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm is running: make test-slurm starts one"),
]


def shorten_time_limit(job):
    """Set the time limit of a running job to the next full minute that is at least half a minute away."""
    (start,) = re.findall(r"StartTime=(\S+)", sh("scontrol", "show", "job", job))
    elapsed_s = time.time() - time.mktime(time.strptime(start, "%Y-%m-%dT%H:%M:%S"))
    sh("scontrol", "update", f"JobId={job}", f"TimeLimit={math.ceil((elapsed_s + 30) / 60)}")


NOTICE = "hydra.launcher.signal_delay_s=60"
AS_IN_A_CONTAINER = 'hydra.launcher.srun_args=["--export=ALL,PATH=/nothing"]'  # without Slurm's programs


@pytest.mark.cgroup
def test_a_run_survives_the_time_limit_without_scontrol_in_its_path(assert_survives):
    """Slurm gives notice before the time limit; the trainer is suspended until then. The batch script requeues the job."""

    def disturb(run):
        os.kill(trainer_pid(run), signal.SIGSTOP)
        shorten_time_limit(training_job(run))
        suspend_until(trainer_pid(run), run.stop_path.exists)
        sh("scontrol", "update", f"JobId={training_job(run)}", "TimeLimit=60")  # for the second attempt

    run = assert_survives("time limit, notice from Slurm, no scontrol in the job", disturb, NOTICE, AS_IN_A_CONTAINER)
    assert events(run, "requeue") and events(run, "stopped")[0]["signal"] == "SIGUSR2"
    assert list((launch_folder(run) / ".submitit").glob("*.requeue")) == []  # the batch script took up the request


@pytest.mark.exhaustive  # four time limits, of a minute each
def test_a_run_of_five_time_limits_needs_no_person(assert_survives):
    """Each limit falls into a step that outlasts the notice, or is answered in time, or never: the job is always requeued."""

    def disturb(run):
        for number, answer in enumerate(["completes its step", "ends within its step", "never", "ends within its step"], 1):
            done = steps(run)
            wait_until(lambda done=done, number=number: len(events(run, "train")) == number and steps(run) > done)
            trainer = trainer_pid(run)
            shorten_time_limit(training_job(run))
            suspend_until(trainer, run.stop_path.exists)
            sh("scontrol", "update", f"JobId={training_job(run)}", "TimeLimit=60")  # for the next attempt
            deadline = read_json(run.stop_path)["deadline"]
            if answer == "ends within its step":  # four seconds are too few for a step, its checkpoint and a margin
                suspend_until(trainer, lambda deadline=deadline: time.time() > deadline - 4)
            elif answer == "never":
                suspend_until(trainer, lambda number=number: len(events(run, "requeue")) == number)
            wait_until(lambda number=number: len(events(run, "requeue")) == number)

    run = assert_survives("five time limits in a row", disturb, NOTICE, after=1, times=4)
    assert [row["saved"] for row in events(run, "stopped")] == [True, True, False, True]
    assert len(events(run, "start")) == 6  # five for training, and the evaluation that waited for it


def test_a_time_limit_that_is_too_short_for_a_step_fails_the_run(slurm, closed_partition):
    """Three time limits without a checkpoint in between: the fourth job would not come further either."""
    slurm("cluster.train.timeout_min=3")  # any notice counts as one of the time limit; Slurm's own comes after 30 to 90 s
    run = only_run(slurm.runs)
    for _ in range(2):
        run.log_event("requeue", stage="train", job=training_job(run), step=0, at_limit=True)
    job = training_job(run)
    closed_partition()
    wait_until(lambda: events(run, "train") or not queue())  # on a busy machine the real notice may come before the training
    sh("scancel", "--signal=USR2", job, check=False)
    wait_for_empty_queue()
    assert run.state() == "failed"
    assert "3 jobs reached their time limit after step 0" in read_json(run.failure_path)["error"]


def suspend_until(pid, condition):
    """Suspend a process until the condition holds, repeatedly, since Slurm continues stopped processes that it signals."""

    def suspended():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        return condition()

    wait_until(suspended)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def test_repeated_preemptions_before_the_first_checkpoint_do_not_fail_the_run(assert_survives):
    """A USR2 hours before the time limit: however often it comes, the job is requeued."""

    def disturb(run):
        for _ in range(3):
            run.log_event("requeue", stage="train", job=training_job(run), step=0, at_limit=False)
        sh("scancel", "--signal=USR2", training_job(run))

    run = assert_survives("a fourth preemption at the same step", disturb, after=1)
    assert [row["at_limit"] for row in events(run, "requeue")] == [False] * 4


def launch_folder(run):
    """Return the folder of the launch that submitted a run."""
    return Path(read_json(run.submission_path)["launch"])


@pytest.mark.exhaustive  # the tests of the time limit and of preemption have the same notice
def test_a_run_survives_a_notice_to_all_processes_of_the_job(assert_survives):
    """USR2 to every process of a job, its shell too: the trainer saves at the end of its step, and the job is requeued."""
    run = assert_survives("USR2 to the whole job", lambda run: sh("scancel", "--signal=USR2", "--full", training_job(run)))
    assert len(events(run, "requeue")) == 1
    first, second = (row["resumed_from"] for row in events(run, "train"))
    assert first is None and int(second.rpartition("-")[2]) >= 5  # its last step, not its last regular checkpoint
    assert events(run, "stopped")[0]["saved"] is True


@pytest.mark.cgroup
def test_a_run_survives_a_requeue_by_the_administrator(assert_survives):
    run = assert_survives("scontrol requeue", lambda run: sh("scontrol", "requeue", training_job(run)))
    assert len(events(run, "start")) == 3  # two for training, one for evaluation


def test_a_run_survives_preemption_by_a_higher_partition(assert_survives):
    def disturb(run):
        node = events(run, "start")[-1]["node_name"]
        options = ("--partition=high", "--exclusive", f"--nodelist={node}", "--output=/dev/null", "--wrap=sleep 2")
        sh("sbatch", *options)

    run = assert_survives("preemption by a higher partition", disturb)
    assert len(events(run, "train")) == 2


def test_a_run_survives_the_loss_of_its_node(assert_survives):
    """A node's slurmd is killed and its trainer suspended: Slurm starts the job elsewhere, and the first attempt ends."""

    def disturb(run):
        node = events(run, "start")[-1]["node_name"]
        pid = Path(os.environ["SLURM_TEST_ROOT"], "run", f"slurmd.{node}.pid")
        os.kill(int(pid.read_text()), signal.SIGKILL)
        os.kill(trainer_pid(run), signal.SIGSTOP)
        wait_until(lambda: read_json(run.attempt_path)["attempt"] == 2)

    try:
        run = assert_survives("a node goes down under the run", disturb)
    finally:
        subprocess.run([ROOT / "tests/launching/slurm/up.sh"], check=True, capture_output=True, timeout=300)
    first, second, *_ = (start["node_name"] for start in events(run, "start"))
    assert first != second


def test_a_run_survives_kill_9_of_the_trainer_and_the_supervisor(assert_survives, slurm):
    """A killed trainer is started again in its job; after a killed supervisor the same command continues the run."""

    def disturb(run):
        os.kill(trainer_pid(run), signal.SIGKILL)
        wait_until(lambda: len(events(run, "train")) == 2)
        os.kill(events(run, "start")[-1]["pid"], signal.SIGKILL)
        wait_for_empty_queue()
        assert run.state() == "lost"
        slurm()

    run = assert_survives("kill -9 of the trainer, then of the supervisor", disturb, times=2)
    assert [row["why"] for row in events(run, "again")] == ["its process was killed"]
    assert len(events(run, "train")) == 3


def test_a_run_on_two_nodes_survives_an_occupied_port_and_kill_9_of_a_rank(slurm, closed_partition, tmp_path, record_property):
    """Both nodes start again in the same job, as after an occupied port; the result is that of two processes on one machine."""
    two_processes = ("distributed=ddp", "distributed.processes=2", "training.per_device_batch_size=16")
    slurm(*two_processes, "cluster.train.nodes=2", gpus=True)
    run = only_run(slurm.runs)
    with socket.create_server(("", 20_000 + int(training_job(run)) % 30_000)):  # occupies the first port that the run tries
        closed_partition()
        wait_until(lambda: steps(run) >= 5)
    os.kill(trainer_pid(run), signal.SIGKILL)
    slurm.launch("cluster=local", *SMALL, *two_processes, runs=tmp_path / "local")
    local_run = only_run(tmp_path / "local")
    wait_for_empty_queue()
    assert run.state() == "done", (read_json(run.failure_path), events(run, "start"))
    assert [row["why"] for row in events(run, "again")] == ["EADDRINUSE", "a process of several was killed"]
    assert weights(run) == weights(local_run) and numbers(run)[0] == numbers(local_run)[0]
    gpus, processes = events(run, "start")[0]["gpus"], read_json(run.record_path)["built"]["processes"]
    assert (gpus.count(",") + 1, processes) == (1, 2)
    record(record_property, "a taken port, then kill -9 of a rank of two nodes", outcome(run), times=2)


@pytest.mark.cgroup
def test_a_run_survives_scancel_while_running_and_while_queued(assert_survives, slurm):
    def disturb(run):
        sh("scancel", training_job(run))
        wait_for_empty_queue()
        assert run.state() == "lost"
        (row,) = json.loads(rlvr("status", str(run.path.parent), "--json"))
        assert ("CANCELLED" if os.environ["SLURM_DBD"] == "1" else "ended") in row["error"]
        set_partition("DOWN")
        slurm()
        assert run.state(live=active_jobs()) == "queued"
        sh("scancel", "--me")
        wait_for_empty_queue()
        set_partition("UP")
        assert run.state(live=active_jobs()) == "lost"
        slurm()

    try:
        assert_survives("scancel, running and then waiting", disturb)
    finally:
        set_partition("UP")


def test_a_run_survives_a_full_disk(assert_survives, slurm):
    """The run records the error in its folder, and continues when there is space."""

    ballast = slurm.runs / "ballast"

    def fill():
        with pytest.raises(OSError, match="No space left"), ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(65536))

    def disturb(run):
        fill()
        wait_for_empty_queue()
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
        assert_survives("the disk fills up", disturb)
    finally:
        sh("umount", "--lazy", str(slurm.runs))


@pytest.mark.cgroup
def test_a_failure_is_reported_by_slurm_and_by_rlvr(slurm, tmp_path, record_property):
    """Training problems that are all too long: FAILED in Slurm, the error in the table, the evaluation out of the queue."""
    problems = tmp_path / "too_long.jsonl"
    problems.write_text('{"question": "' + "long " * 200 + '", "answer": "1"}\n')
    slurm(f"data.path={problems}", "data.problems=null")
    wait_for_empty_queue()
    run = only_run(slurm.runs)
    assert run.state() == "failed"
    assert "JobState=FAILED" in sh("scontrol", "show", "job", training_job(run))
    if os.environ["SLURM_DBD"] == "1":
        wait_until(
            lambda: sh("sacct", "-n", "-X", "-P", "-o", "State", "-j", training_job(run)).strip() == "FAILED", pause_s=0.5
        )
    rows = json.loads(rlvr("status", str(slurm.runs), "--json"))
    assert "No problem of" in rows[0]["error"] and rows[0]["job"]
    assert "Traceback" in rlvr("logs", str(run.path), "--stage", "train")
    output = slurm(f"data.path={problems}", "data.problems=null").stdout
    assert "left alone (retry=true" in output and not queue()
    record(record_property, "an exception in the run", "FAILED in Slurm, its error in the table", identical="-")
