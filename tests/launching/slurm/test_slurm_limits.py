"""Test on a real Slurm the limits of arrays and accounts, and launches refused because the cluster could not run them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import all_runs
from tests.launching.slurm.conftest import only_run, queue, sh, wait_for_empty_queue

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm is running: make test-slurm starts one"),
]


def untrained(count):
    """Return the overrides of a grid of runs that are only evaluated: one job each."""
    return "-m", "peft=none", "model.system_prompt=" + ",".join("abcdefghijkl"[:count])


def states(slurm):
    """Return the states of all runs of the launch."""
    return [run.state() for run in all_runs(slurm.runs)]


def test_more_runs_than_an_array_may_have_are_submitted_as_two_arrays(slurm):
    """Four runs on a cluster whose arrays hold three."""
    assert "submitted 4 runs as jobs" in slurm(*untrained(4)).stdout
    wait_for_empty_queue()
    assert states(slurm) == ["done"] * 4
    assert len({run.jobs()["evaluate"].partition("_")[0] for run in all_runs(slurm.runs)}) == 2


def test_a_training_without_memory_continues_with_smaller_passes(slurm):
    """The job's memory is too small for 256 full-length completions in one pass."""
    largest = ("batch_size=256", "rollout.max_tokens=8", "data.max_prompt_tokens=180", "training.worst_case_first=always")
    small = ("steps=1", "signal_check=off", "hydra.launcher.setup=[ulimit -v 4000000]")  # 8 tokens are too few for an answer
    slurm(*largest, "training.per_device_batch_size=256", *small)
    wait_for_empty_queue()
    run = only_run(slurm.runs)
    assert run.state() == "done" and read_json(run.per_device_path)["fits"] in (32, 64, 128)
    reasons = [row["why"] for row in read_rows(run.attempts_path) if row["event"] == "again"]
    assert reasons and all("out of memory" in reason for reason in reasons)


def make_account(name, max_submit_jobs):
    """Make an account in which root may have so many jobs; return the override that launches with it."""
    sh("sacctmgr", "-i", "add", "account", name, "Cluster=testcluster")
    sh("sacctmgr", "-i", "add", "user", "root", f"Account={name}", f"MaxSubmitJobs={max_submit_jobs}")
    return f"hydra.launcher.account={name}"


@pytest.mark.accounting
def test_runs_above_an_accounts_limit_are_submitted_by_later_launches(slurm):
    """As many runs as allowed are submitted, the rest is listed; the same command submits it later, until all runs are done."""
    limited = make_account("few", max_submit_jobs=2)
    output = slurm(*untrained(3), limited).stdout
    assert "submitted 2 runs as jobs" in output
    assert "1 runs are not submitted yet" in output and "AssocMaxSubmitJobLimit" in output
    output = slurm(*untrained(3), limited).stdout
    assert "1 runs are not submitted yet" in output or "submitted 1 runs" in output
    wait_for_empty_queue()
    slurm(*untrained(3), limited)
    wait_for_empty_queue()
    assert states(slurm) == ["done"] * 3
    assert "3 done; nothing to do" in slurm(*untrained(3), limited).stdout


@pytest.mark.accounting
def test_an_expired_account_is_refused(slurm):
    """Sites close an account by removing its association or by setting its limit of jobs to 0."""
    assert "invalid account" in slurm("hydra.launcher.account=gone", expect=1).stderr.lower()
    refused = slurm(make_account("expired", max_submit_jobs=0), expect=1).stderr
    assert "AssocMaxSubmitJobLimit" in refused and "waiting changes nothing" in refused
    assert only_run(slurm.runs).state() == "new" and not queue()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("hydra.launcher.partition=nowhere", "invalid partition"),
        ("hydra.launcher.gres=gpu:h100:99", "node configuration"),
        ("hydra.launcher.constraint=nothing", "feature"),
        ("hydra.launcher.partition=far", "cluster.train.timeout_min=60"),
    ],
)
def test_settings_that_slurm_would_refuse_are_refused_at_launch(slurm, setting, message):
    refused = slurm(setting, expect=1)
    assert message in refused.stdout.lower() + refused.stderr.lower()
    assert not queue() and [run.state() for run in all_runs(slurm.runs)] in ([], ["new"])


def test_a_folder_that_is_not_shared_with_the_nodes_is_refused(slurm, tmp_path):
    options = ("hydra.launcher.partition=far", "cluster.train.timeout_min=30", "cluster.evaluate.timeout_min=30")
    in_memory = Path("/dev/shm") / tmp_path.name
    refused = slurm(*options, expect=1, runs=in_memory).stderr
    assert "on tmpfs, which only this machine sees" in refused
    (in_memory / ".submitting").unlink()
    in_memory.rmdir()


def test_rlvr_doctor_examines_a_node(slurm):
    """Slurm's GPUs are simulated and torch sees none; the other checks of the cluster give no bad verdict."""
    # The doctor's job is in the default partition.
    environment = {key: value for key, value in os.environ.items() if key != "SQUEUE_PARTITION"}
    command = [sys.executable, "-m", "rlvr_sweeps.cli", "doctor", str(slurm.runs), "--job", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    rows = {row["what"]: row for row in json.loads(process.stdout)}
    assert re.match("ran on node[12] with gpus-per-node=1$", rows["a job (sbatch, srun)"]["found"])
    assert rows["shared folder"]["verdict"] == rows["Python on the node"]["verdict"] == "good"
    assert rows["GPUs on the node"] | {"cure": ""} == {
        "what": "GPUs on the node", "verdict": "bad", "found": "Slurm gave 1, torch sees 0", "cure": "",
    }  # fmt: skip
    assert process.returncode == 1 and not list(slurm.runs.iterdir())


def test_a_launch_without_slurm_is_refused(launch, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert "There is no squeue here" in launch("cluster=slurm", expect=1).stderr
