"""On a real Slurm: arrays and accounts have limits, and what a cluster cannot carry out is refused, in its own words."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import all_runs
from tests.launching.slurm.conftest import all_ended, only, queue, sh, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm is up: make test-slurm starts one"),
]


def untrained(count):
    """A grid of runs that are only evaluated: one job each."""
    return "-m", "peft=none", "model.system_prompt=" + ",".join("abcdefghijkl"[:count])


def states(slurm):
    return [run.state() for run in all_runs(slurm.runs)]


def test_arrays_are_cut(slurm):
    """Nine runs on a cluster whose arrays hold eight."""
    assert "submitted 9 runs as jobs" in slurm(*untrained(9)).stdout
    until(all_ended)
    assert states(slurm) == ["done"] * 9
    assert len({run.jobs()["evaluate"].partition("_")[0] for run in all_runs(slurm.runs)}) == 2


def test_a_training_without_memory_goes_on_with_smaller_passes(slurm):
    """The job's memory is really too little for 1,024 full-length completions at once."""
    worst = ("batch_size=1024", "rollout.max_tokens=8", "data.max_prompt_tokens=180", "training.worst_case_first=always")
    slurm(*worst, "training.per_device_batch_size=1024", "steps=1", "hydra.launcher.setup=[ulimit -v 7000000]")
    until(all_ended)
    (run,) = all_runs(slurm.runs)
    assert run.state() == "done" and read_json(run.per_device_path)["fits"] in (128, 256, 512)
    whys = [row["why"] for row in read_rows(run.attempts_path) if row["event"] == "again"]
    assert whys and all("out of memory" in why for why in whys)


@pytest.mark.accounting
def test_an_account_may_have_five_jobs(slurm):
    """What fits is submitted, the rest is said; the same command again brings it, until all is done."""
    sh("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=5")
    try:
        said = slurm(*untrained(6)).stdout
        assert "submitted 5 runs as jobs" in said
        assert "1 runs are not submitted yet" in said and "AssocMaxSubmitJobLimit" in said
        again = slurm(*untrained(6)).stdout
        assert "1 runs are not submitted yet" in again or "submitted 1 runs" in again
        until(all_ended)
        slurm(*untrained(6))
        until(all_ended)
        assert states(slurm) == ["done"] * 6
        assert "6 done; nothing to do" in slurm(*untrained(6)).stdout
    finally:
        sh("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=-1")


@pytest.mark.accounting
def test_an_expired_account(slurm):
    """Sites close an account by taking its association away, or its jobs."""
    assert "invalid account" in slurm("hydra.launcher.account=gone", expect=1).stderr.lower()
    sh("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=0")
    try:
        refused = slurm(expect=1).stderr
        assert "AssocMaxSubmitJobLimit" in refused and "waiting changes nothing" in refused
    finally:
        sh("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=-1")
    assert only(slurm.runs).state() == "new" and not queue()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("hydra.launcher.partition=nowhere", "invalid partition"),
        ("hydra.launcher.gres=gpu:h100:99", "node configuration"),
        ("hydra.launcher.constraint=nothing", "feature"),
        ("hydra.launcher.partition=far", "cluster.train.timeout_min=60"),
    ],
)
def test_refused_by_slurm_or_for_it(slurm, setting, said):
    refused = slurm(setting, expect=1)
    assert said in refused.stdout.lower() + refused.stderr.lower()
    assert not queue() and [run.state() for run in all_runs(slurm.runs)] in ([], ["new"])


def test_a_folder_that_the_nodes_do_not_see(slurm, tmp_path):
    elsewhere = ("hydra.launcher.partition=far", "cluster.train.timeout_min=30", "cluster.evaluate.timeout_min=30")
    memory = Path("/dev/shm") / tmp_path.name
    refused = slurm(*elsewhere, expect=1, runs=memory).stderr
    assert "on tmpfs, which only this machine sees" in refused
    (memory / ".submitting").unlink()
    memory.rmdir()


def test_the_doctor_looks_from_a_node(slurm):
    """Here Slurm's GPUs are pretended and torch sees none: that, and nothing else of the cluster, is bad."""
    done = subprocess.run(
        [sys.executable, "-m", "rlvr_sweeps.cli", "doctor", str(slurm.runs), "--job", "--json"], capture_output=True, text=True
    )
    found = {row["what"]: row for row in json.loads(done.stdout)}
    assert found["a job (sbatch, srun)"]["found"] in ("ran on node1", "ran on node2")
    assert found["shared folder"]["verdict"] == found["Python on the node"]["verdict"] == "good"
    assert found["GPUs on the node"] | {"cure": ""} == {
        "what": "GPUs on the node", "verdict": "bad", "found": "Slurm gave 1, torch sees 0", "cure": "",
    }  # fmt: skip
    assert done.returncode == 1 and not list(slurm.runs.iterdir())


def test_without_a_slurm(launch, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert "There is no squeue here" in launch("cluster=slurm", expect=1).stderr
