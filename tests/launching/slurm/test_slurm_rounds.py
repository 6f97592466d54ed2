"""Test on a real Slurm that the last job of a round runs the launch command again, and that the rounds end."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from rlvr_sweeps.files import read_json
from rlvr_sweeps.runs.directory import all_runs
from tests.conftest import ROOT
from tests.launching.slurm.conftest import events, queue, rlvr, sh, wait_for_empty_queue, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm is running: make test-slurm starts one"),
]
SHORT = (
    "signal_check=off", "batch_size=8", "rollout.group_size=4", "rollout.max_tokens=24", "steps=1", "data.problems=null",
    "data.holdout=4",
)  # fmt: skip


@pytest.fixture
def grid(twelve):
    """Return the command of a grid of learning rates: three runs, then one more, since after one step all rates are equal."""
    return "-m", "lr=auto:4", *SHORT, f"data.path={twelve}"


def jobs_named(name):
    """Return the ids of the jobs in the queue whose name begins with `name`."""
    lines = sh("squeue", "--me", "-h", "-r", "-o", "%i %j").splitlines()
    return [line.split()[0] for line in lines if line.split(maxsplit=1)[1].startswith(name)]


def rounds_of(slurm):
    """Return what the files of last jobs in the runs folder store."""
    return [read_json(path) for path in (slurm.runs / ".rounds").glob("*.json")]


def test_one_last_job_waits_for_all_jobs_of_a_round_and_is_cancelled_with_them(slurm, closed_partition, grid):
    output = slurm(*grid).stdout
    (last,) = jobs_named("next round")
    assert f"the next round: job {last} launches it when these runs have ended" in output
    jobs = {job for run in all_runs(slurm.runs) for job in run.jobs().values()}
    assert len(jobs) == 6
    (stored,) = rounds_of(slurm)
    assert set(stored["waits_for"]) == jobs and "lr=auto:4" in stored["arguments"]
    dependency = sh("squeue", "-h", "-j", last, "-o", "%E")
    assert dependency.count("afterany:") == len({job.partition("_")[0] for job in jobs}), dependency
    assert f"the next round: job {last}, which is in the queue" in slurm(*grid).stdout
    cancelled = rlvr("cancel", "--all", "--runs-dir", str(slurm.runs))
    assert f"next round {stored['launch'].rpartition('/')[2]}: cancelled {last}" in cancelled
    assert not queue() and not rounds_of(slurm)


@pytest.mark.exhaustive
def test_a_last_job_that_is_gone_is_shown_and_replaced_and_the_last_run_cancels_it(slurm, closed_partition, grid):
    folder = ("--runs-dir", str(slurm.runs))
    slurm(*grid, "plan=true")
    assert not queue() and not rounds_of(slurm)
    slurm(*grid)
    (last,) = jobs_named("next round")
    sh("scancel", last)
    assert f"Job {last} ended without launching the next round" in rlvr("status", str(slurm.runs))
    slurm(*grid)
    (replaced,) = jobs_named("next round")
    assert replaced != last and "without launching" not in rlvr("status", str(slurm.runs))
    first, second, third = all_runs(slurm.runs)
    assert "next round" not in rlvr("cancel", first.id, second.id, *folder)
    assert jobs_named("next round") == [replaced]
    assert f"cancelled {replaced}" in rlvr("cancel", third.id, *folder)
    assert not queue() and not rounds_of(slurm)


@pytest.mark.exhaustive
def test_rounds_follow_each_other_until_nothing_is_left_to_launch(slurm, grid):
    slurm(*grid)
    wait_until(lambda: len(all_runs(slurm.runs)) == 4)
    wait_for_empty_queue()
    runs = all_runs(slurm.runs)
    assert [run.state() for run in runs] == ["done"] * 4
    assert all(len(events(run, "start")) == 2 for run in runs)
    assert len({run.submission()["launch"] for run in runs}) == 2 and not rounds_of(slurm)
    assert len({run.submission()["code"] for run in runs}) == 1


@pytest.mark.exhaustive
def test_a_budget_is_spent_round_by_round_without_waiting(slurm):
    """The first round has two seeds of three rows; the last job launches the seventh run, unless the claims need none."""
    slurm("sweep=algo", "budget=7", "most_seeds=4", "signal_check=off", "analysis=none")
    assert len(all_runs(slurm.runs)) == 6
    wait_for_empty_queue()
    runs = all_runs(slurm.runs)
    assert {run.state() for run in runs} == {"done"} and not rounds_of(slurm)
    logs = "".join(path.read_text() for path in slurm.runs.parent.rglob("*_log.out"))
    assert "Claims after 6 runs" in logs
    assert len(runs) == 7 or "All claims are decided" in logs or "No further seed" in logs


@pytest.mark.exhaustive
def test_a_run_that_was_lost_is_not_submitted_again_and_the_rounds_end(slurm, grid):
    slurm(*grid)
    first, *_ = all_runs(slurm.runs)
    sh("scancel", *first.jobs().values())
    wait_for_empty_queue()
    assert sorted(run.state(live={}) for run in all_runs(slurm.runs)) == ["done", "done", "lost"]
    assert not rounds_of(slurm)
    log = next(
        path for path in slurm.runs.parent.rglob("*_log.out") if "Not submitted again without a person" in path.read_text()
    )
    assert first.name in log.read_text()


@pytest.mark.exhaustive
def test_a_last_job_that_may_not_submit_says_so(slurm, closed_partition, grid, tmp_path, monkeypatch):
    """On the node, sbatch is refused; rlvr status names the error and the command, which goes on."""
    folder = tmp_path / "bin"
    folder.mkdir()
    real = shutil.which("sbatch")
    refusal = 'echo "sbatch: error: Batch job submission failed: Access/permission denied" >&2; exit 1'
    (folder / "sbatch").write_text(f'#!/bin/bash\nif [ -n "$RLVR_ROUND_JOB" ]; then {refusal}; fi\nexec {real} "$@"\n')
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    slurm(*grid)
    closed_partition()
    wait_for_empty_queue()
    text = rlvr("status", str(slurm.runs))
    assert "The next round was not launched" in text and "Access/permission denied" in text
    assert "python launch.py" in text and "lr=auto:4" in text
    output = slurm(*grid).stdout
    assert "submitted 1 runs" in output and "launches it when these runs have ended" in output
    wait_for_empty_queue()
    assert [run.state() for run in all_runs(slurm.runs)] == ["done"] * 4 and not rounds_of(slurm)


@pytest.mark.exhaustive
def test_a_launch_that_is_killed_before_its_last_job_is_repaired_by_the_same_command(
    slurm, closed_partition, grid, tmp_path, monkeypatch
):
    """Kill -9 while sbatch works on the last job: the same command cancels the job that nobody knows and submits one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    real = shutil.which("sbatch")
    wait = f'if grep -q "next round" "${{@: -1}}"; then touch {tmp_path}/reached; sleep 5; fi'
    (folder / "sbatch").write_text(f'#!/bin/bash\n{real} "$@"\ncode=$?\n{wait}\nexit $code\n')
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    process = subprocess.Popen(slurm.command(*grid), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: (tmp_path / "reached").exists() or process.poll() is not None)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    (unknown,) = jobs_named("next round")
    (folder / "sbatch").unlink()
    commands = [
        subprocess.Popen(slurm.command(*grid), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    outputs = [command.communicate(timeout=300)[0] for command in commands]
    assert all(command.returncode == 0 for command in commands), outputs
    assert sum(f"Cancelled job {unknown}" in output for output in outputs) == 1
    time.sleep(1)
    (last,) = jobs_named("next round")
    assert last != unknown and len(queue()) == 6 + 1 + 1  # two jobs of each run, the report, the last job
    assert sum("launches it when these runs have ended" in output for output in outputs) == 1
