"""Test on a real Slurm that each run is submitted once, whatever happens to the launch, to sbatch and to its answers.

The partition is closed, so that jobs stay in the queue and the queue shows what was submitted. A program called sbatch in front
of the real one is slow, fails, or loses Slurm's answer.
"""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from rlvr_sweeps.runs.directory import all_runs
from tests.conftest import ROOT
from tests.launching.slurm.conftest import (
    PARTITION,
    fault_seed,
    queue,
    record,
    rlvr,
    sh,
    wait_for_empty_queue,
    wait_until,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm is running: make test-slurm starts one"),
]
GRID = ("-m", "seed=1,2,3,4")  # four runs, in two arrays per stage: an array of this cluster holds three tasks
REAL_SBATCH = shutil.which("sbatch")


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Return a function that puts an sbatch of the given shell commands in front of the real one, which is $REAL there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(commands):
        (folder / "sbatch").write_text(
            f"#!/bin/bash\nREAL={REAL_SBATCH}\nCALLS={tmp_path}/calls\necho call >> $CALLS\n{commands}\n"
        )
        (folder / "sbatch").chmod(0o755)

    return write


def calls(tmp_path):
    """Return how often the sbatch in front was called."""
    path = tmp_path / "calls"
    return len(path.read_text().split()) if path.exists() else 0


def assert_every_run_is_submitted_once(slurm, runs=4):
    """Assert that the queue holds the two jobs of each run and at most report jobs beside them, and that none is deferred."""
    active = queue()
    known = {job for run in all_runs(slurm.runs) for job in run.jobs().values()}
    assert len(known) == 2 * runs and known <= set(active)
    others = sh("squeue", "--me", "-h", "-r", "-o", "%i %j").splitlines()
    assert all(line.split()[1] == "report" for line in others if line.split()[0] not in known), others
    assert set(sh("squeue", "--me", "-h", "-r", "-o", "%S").split()) <= {"N/A"}  # the start time of released jobs


def record_outcome(record_property, fault, times):
    """Record a row of docs/reliability.md for faults of a submission, after which nothing is trained."""
    outcome = "the same launch, or the same command again, submitted every run once"
    record(record_property, fault, outcome, times=times, runs=4, identical="-")


@pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_a_launch_that_is_killed_at_any_instant_is_completed_by_the_same_command(
    slurm, closed_partition, sbatch, tmp_path, times, record_property
):
    """Kill -9 of the launch while a slow sbatch works, which goes on after it: jobs appear that no run knows."""
    seed = fault_seed()
    instants = random.Random(seed)
    for _ in range(times):
        sbatch('sleep 0.3; $REAL "$@"; code=$?; sleep 0.3; exit $code')
        process = subprocess.Popen(slurm.command(*GRID), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until((tmp_path / "calls").exists, pause_s=0.01)
        time.sleep(instants.uniform(0, 3.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        sbatch('exec $REAL "$@"')
        slurm(*GRID)
        time.sleep(1)  # a last sbatch of the killed launch ends
        assert "nothing to do" in slurm(*GRID).stdout
        assert_every_run_is_submitted_once(slurm)
        sh("scancel", "--me")
        wait_for_empty_queue()
        shutil.rmtree(slurm.runs)
        (tmp_path / "calls").unlink()
    record_outcome(record_property, f"kill -9 of a launch that submits, at random instants (seed {seed})", times)


def test_an_sbatch_that_fails_every_second_time(slurm, closed_partition, sbatch, tmp_path, record_property):
    """Slurm's controller is busy: sbatch says so, and the launch tries again."""
    sbatch('if (( $(wc -l < $CALLS) % 2 )); then echo "sbatch: error: Batch job submission failed: Unable to contact slurm '
           'controller (connect failure)" >&2; exit 1; fi; exec $REAL "$@"')  # fmt: skip
    output = slurm(*GRID).stdout
    assert "Unable to contact slurm controller" in output and "Trying again in 1 s" in output
    assert_every_run_is_submitted_once(slurm)
    record_outcome(record_property, "sbatch fails every second time", calls(tmp_path) // 2)


def test_an_sbatch_that_times_out_although_slurm_accepted_the_job(slurm, closed_partition, sbatch, tmp_path, record_property):
    """The first call of each kind loses Slurm's answer; the job that it made is cancelled, and never starts."""
    sbatch('if (( $(wc -l < $CALLS) % 2 )); then $REAL "$@" > /dev/null; echo "sbatch: error: Batch job submission failed: '
           'Socket timed out on send/recv operation" >&2; exit 1; fi; exec $REAL "$@"')  # fmt: skip
    assert "Socket timed out" in slurm(*GRID).stdout
    assert "nothing to do" in slurm(*GRID).stdout
    assert_every_run_is_submitted_once(slurm)
    record_outcome(record_property, "sbatch times out although Slurm accepted the job", calls(tmp_path) // 2)


def test_ctrl_c_during_a_submission_leaves_no_half_submitted_run(slurm, closed_partition, sbatch, tmp_path, record_property):
    """Ctrl-C reaches the launch and sbatch, as a terminal sends it; the first runs stay submitted."""
    sbatch('trap "exit 130" INT; $REAL "$@"; code=$?; if (( $(wc -l < $CALLS) == 3 )); then sleep 30 & wait; fi; exit $code')
    process = subprocess.Popen(
        slurm.command(*GRID), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored after a shell's &
    )  # fmt: skip
    wait_until(lambda: calls(tmp_path) == 3)
    time.sleep(0.5)  # Slurm has accepted the third array, and its sbatch has not ended
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in errors
    assert "Interrupted: 3 of 4 runs are submitted and continue" in errors
    assert len(queue()) == 6
    sbatch('exec $REAL "$@"')
    slurm(*GRID)
    assert_every_run_is_submitted_once(slurm)
    record_outcome(record_property, "Ctrl-C during a submission", 1)


def test_a_job_that_no_run_knows_is_shown_and_cancelled(slurm, closed_partition):
    """An sbatch that outlived its launch: a deferred job with the token of a finished submission."""
    slurm("seed=1")
    (token,) = {line.split()[0] for line in sh("squeue", "--me", "-h", "-o", "%k %j").splitlines() if " train " in line}
    submitted = sh(
        "sbatch", "--parsable", "--begin=now+365days", f"--comment={token}", f"--partition={PARTITION}", "--wrap=true"
    ).strip()
    assert f"unknown to every run, since a launch was cut off: job {submitted}" in rlvr("status", str(slurm.runs))
    assert f"Cancelled job {submitted}" in slurm("seed=1").stdout
    assert submitted not in queue()
    assert_every_run_is_submitted_once(slurm, runs=1)


def test_defaults_of_the_site_in_the_environment_are_used_and_shown(slurm, closed_partition, monkeypatch):
    """SBATCH_* fill in what the command does not set; Slurm itself would rank them above it."""
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")
    monkeypatch.setenv("SBATCH_CONSTRAINT", "nothing")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")
    refused = slurm("seed=1", expect=1)
    assert "from the environment: SBATCH_CONSTRAINT=nothing" in refused.stdout and "feature" in refused.stderr.lower()
    monkeypatch.delenv("SBATCH_CONSTRAINT")
    assert "submitted 1 runs" in slurm("seed=1").stdout
    limits = sh("squeue", "--me", "-h", "-o", "%l").split()  # of the jobs in this partition
    assert len(limits) == 3 and "1:00" not in limits
