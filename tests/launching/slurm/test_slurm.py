"""On a real Slurm: what is submitted comes back, computed once, and as the local launcher computes it."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import all_runs
from tests.conftest import ROOT
from tests.launching.slurm.conftest import (
    NO_GPU,
    SMALL,
    all_ended,
    events,
    live,
    numbers,
    only,
    queue,
    rlvr,
    steps,
    until,
    weights,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm is up: make test-slurm starts one"),
]


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
    assert "6 done; nothing to do" in slurm(*grid).stdout and not queue()


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
    command = slurm.command("steps=4", "hydra.launcher.srun_args=[--no-kill]")
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    until(lambda: any(run.jobs() for run in all_runs(slurm.runs)))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    until(all_ended)
    assert only(slurm.runs).state() == "done"


def test_what_is_queued_is_frozen(slurm, held, uninterrupted, tmp_path):
    """conf/ and a module are edited while a run waits: it is what it was when it was submitted."""
    copy = tmp_path / "copy"
    for part in ("conf", "rlvr_sweeps", "hydra_plugins", "launch.py"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, copy / part)
    subprocess.run(slurm.command(*NO_GPU), cwd=copy, check=True, capture_output=True, timeout=120)
    run = only(slurm.runs)
    edited = copy / "conf/model/tiny.yaml"
    edited.write_text(edited.read_text().replace("lr: 1e-3", "lr: 0.5"))
    for module in ("train", "trainer", "evaluate", "job"):
        (copy / f"rlvr_sweeps/{module}.py").write_text("raise RuntimeError('edited')\n")
    held()
    until(all_ended)
    assert run.state() == "done" and weights(run) == weights(uninterrupted) and numbers(run) == numbers(uninterrupted)


def test_what_left_the_grid_is_named_and_left_alone(slurm, held):
    slurm("-m", "peft=lora,dora")
    lora, dora = sorted(all_runs(slurm.runs), key=lambda run: "dora" in run.name)
    for plan in ("true", "false"):
        said = slurm("-m", "peft=lora", f"plan={plan}").stdout
        assert f"no longer in this sweep's grid (they go on). To stop them: rlvr cancel {dora.name}" in said
    assert dora.jobs()["train"] in queue() and lora.jobs()["train"] in queue()
    assert "no longer in this sweep" not in slurm("sweep=rank", "plan=true").stdout


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


def test_the_stock_launcher_runs_the_same_task(launch):
    launch("-m", "cluster=submitit", *SMALL, "peft=none", "hydra.launcher.timeout_min=10")
    assert only(launch.runs).state() == "done"


def test_cancel_retry_and_logs(slurm):
    slurm("steps=4")
    run = only(slurm.runs)
    until(lambda: steps(run) >= 1)
    assert "cancelled" in rlvr("cancel", str(run.path))
    assert json.loads(rlvr("logs", str(run.path), "--json"))["log"].endswith("train.txt")
    until(all_ended)
    assert run.state(live=live()) == "lost"
    assert "submitted as jobs" in rlvr("retry", str(run.path))
    until(all_ended)
    assert run.state() == "done"
    again = subprocess.run([sys.executable, "-m", "rlvr_sweeps.cli", "retry", str(run.path)], capture_output=True, text=True)
    assert again.returncode == 1 and "is done: there is nothing to run again" in again.stderr


def test_an_evaluations_job_analyses_too_and_what_lacks_only_its_analysis_gets_a_job(slurm):
    slurm("-m", "peft=lora", "steps=2")
    until(all_ended)
    run = only(slurm.runs)
    assert run.state() == "done" and not run.analysis_path.exists()
    jobs = run.jobs()
    assert "submitted 1 run" in slurm("-m", "peft=lora", "steps=2", "analysis=final").stdout
    until(all_ended)
    assert run.state() == "done" and run.analysis_path.exists()
    assert list(run.jobs()) == ["evaluate"] and run.jobs()["evaluate"] != jobs["evaluate"]
    assert [row["stage"] for row in events(run, "done")] == ["train", "evaluate", "analyse"]
