"""On a real Slurm: what is submitted comes back, whatever happens in between. `make test-slurm` starts and stops it.

Two virtual nodes with four pretended GPUs each; the training is real, on CPUs.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.run import Run, all_runs
from tests.conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm is up: make test-slurm starts one"),
]
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


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory):
    """The same run by the local launcher, in one piece."""
    folder = tmp_path_factory.mktemp("local")
    command = [sys.executable, "launch.py", "-m", *SMALL, f"runs_dir={folder}/runs", f"hydra.sweep.dir={folder}/launch"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
    return only(folder / "runs")


def test_a_grid_comes_back_as_from_the_local_launcher(slurm, tmp_path):
    grid = ("-m", "peft=dora,lora,pissa", "algo=dapo,grpo", "steps=4")
    said = slurm(*grid).stdout
    assert "submitted 6 runs as jobs" in said and "rlvr status" in said
    until(all_ended, 400)
    slurm.launch("-m", "cluster=local", *SMALL, *grid[1:], runs=tmp_path / "local")
    here = {run.name: run for run in all_runs(tmp_path / "local")}
    there = {run.name: run for run in all_runs(slurm.runs)}
    assert len(there) == 6 and set(here) == set(there)
    for name, run in there.items():
        assert run.state() == "done"
        assert numbers(run) == numbers(here[name]), name
        assert weights(run) == weights(here[name]), name
    assert (slurm.runs / "report.html").exists()  # the launch's last job
    before = time.monotonic()
    assert "6 done; nothing to do" in slurm(*grid).stdout and not queue()
    assert time.monotonic() - before < 60


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


def job_of(run):
    return run.jobs()["train"]


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


def live():
    from rlvr_sweeps import slurm as module

    return module.live()


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


def test_waiting_for_a_canary(slurm, tmp_path):
    """The others start after it; where something fails, the command that waited says what, and exits with 1."""
    said = slurm("-m", "peft=lora", "steps=4", "canary=true", "wait=true", "hydra.launcher.poll_s=1").stdout
    assert "canary: job" in said and f"{only(slurm.runs).name}  done" in said
    canary = only(slurm.runs / ".canary")
    assert len(read_rows(canary.metrics_path)) == 2
    assert events(canary, "done")[-1]["time"] <= events(only(slurm.runs), "start")[0]["time"]
    few = tmp_path / "few.jsonl"
    few.write_text('{"question": "' + "long " * 200 + '", "answer": "1"}\n')
    bad = (f"data.path={few}", "data.problems=null", "canary=true", "wait=true")
    refused = slurm(*bad, expect=1, runs=tmp_path / "bad")
    assert "1 of 1 runs are not done" in refused.stdout + refused.stderr
    assert not (only(tmp_path / "bad").path / "train.json").exists()  # the canary died of it, not the run


def test_two_launches_at_once_compute_once(slurm):
    grid = ("-m", "peft=lora,dora", "steps=4")
    both = [subprocess.Popen(slurm.command(*grid), cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert sorted("submitted 2 runs" in text for text in said) == [False, True]
    until(all_ended, 300)
    for run in all_runs(slurm.runs):
        assert run.state() == "done" and len(events(run, "train")) == 1


def test_the_login_process_is_killed(slurm):
    process = subprocess.Popen(slurm.command("steps=4"), cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    until(lambda: any(run.jobs() for run in all_runs(slurm.runs)))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    until(all_ended)
    assert only(slurm.runs).state() == "done"


def test_what_is_queued_is_frozen(slurm, tmp_path):
    """The code and the configuration of a waiting run are those of its submission."""
    sh("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        slurm("steps=4")
        run = only(slurm.runs)
        code = Path(read_json(run.submission_path)["code"])
        assert code.is_relative_to(slurm.runs)
        (code / "rlvr_sweeps" / "grading.py").read_text()
        script = next(Path(read_json(run.submission_path)["launch"]).rglob("*submission*.sh")).read_text()
        assert f"export PYTHONPATH={code}" in script
    finally:
        sh("scontrol", "update", "PartitionName=main", "State=UP")
    until(all_ended)
    assert run.state() == "done" and len(read_rows(run.metrics_path)) == 4


def test_one_gpu_two_gpus_and_two_nodes_in_one_grid(slurm):
    two = ("distributed=ddp", "distributed.processes=2", "training.per_device_batch_size=16", "steps=3")
    slurm("steps=3", gpus=True)
    slurm(*two, "lr=2e-3", gpus=True)
    slurm(*two, "lr=3e-3", "cluster.train.nodes=2", gpus=True)
    until(all_ended, 400)
    found = {}
    for run in all_runs(slurm.runs):
        assert run.state() == "done", run.failure_path.read_text() if run.failure_path.exists() else run.path
        cfg, start = run.config(), events(run, "start")[0]
        found[cfg["lr"]] = (start["gpus"].count(",") + 1, read_json(run.record_path)["built"]["processes"])
    assert found == {1e-3: (1, 1), 2e-3: (2, 2), 3e-3: (1, 2)}


def test_arrays_are_cut_and_what_does_not_fit_is_said(slurm):
    said = slurm("-m", "peft=none", "model.system_prompt=a,b,c,d,e", "hydra.launcher.max_array_size=2", "plan=false").stdout
    assert "submitted 5 runs as jobs" in said
    until(all_ended, 300)
    assert [run.state() for run in all_runs(slurm.runs)] == ["done"] * 5
    arrays = {run.jobs()["evaluate"].partition("_")[0] for run in all_runs(slurm.runs)}
    assert len(arrays) == 3


def test_cancel_retry_and_logs(slurm):
    slurm("steps=4")
    run = only(slurm.runs)
    until(lambda: steps(run) >= 1)
    rlvr = [sys.executable, "-m", "rlvr_sweeps.cli"]
    assert "cancelled" in sh(*rlvr, "cancel", str(run.path))
    until(all_ended)
    assert run.state(live=live()) == "lost"
    assert "submitted as jobs" in sh(*rlvr, "retry", str(run.path))
    until(all_ended)
    assert run.state() == "done"
    again = subprocess.run([*rlvr, "retry", str(run.path)], capture_output=True, text=True)
    assert again.returncode == 1 and "is done: there is nothing to run again" in again.stderr


@pytest.mark.parametrize(
    ("setting", "said"),
    [("hydra.launcher.partition=nowhere", "invalid partition"), ("hydra.launcher.gres=gpu:h100:99", "node configuration")],
)
def test_slurms_own_words(slurm, setting, said):
    refused = slurm(setting, expect=1)
    assert said in refused.stdout.lower() + refused.stderr.lower()
    assert not queue() and only(slurm.runs).state() == "new"


def test_without_a_slurm(launch, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert "There is no squeue here" in launch("cluster=slurm", expect=1).stderr


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
