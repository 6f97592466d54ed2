"""Test on a real Slurm that submitted runs are computed once, with the results of the local launcher."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.launching.slurm.queue import active_jobs
from rlvr_sweeps.runs.directory import all_runs
from tests.conftest import ROOT
from tests.launching.slurm.conftest import (
    PARTITION,
    SMALL,
    events,
    numbers,
    only_run,
    queue,
    rlvr,
    steps,
    wait_for_empty_queue,
    wait_until,
    weights,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm is running: make test-slurm starts one"),
]


@pytest.mark.parametrize(
    ("count", "methods"),
    [
        (2, ("peft=lora,pissa", "algo=dapo")),
        pytest.param(6, ("peft=dora,lora,pissa", "algo=dapo,grpo"), marks=pytest.mark.exhaustive),
    ],
)
def test_a_grid_gives_the_results_of_the_local_launcher(slurm, tmp_path, count, methods):
    """Two commands launch the grid at once: each run is computed once. A run that lacks only its analysis then gets a job."""
    grid = ("-m", *methods, "steps=4")
    launches = [subprocess.Popen(slurm.command(*grid), cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=600)[0] for process in launches]
    assert sorted(f"submitted {count} runs as jobs" in text for text in outputs) == [False, True]
    assert all("rlvr status" in text for text in outputs)
    slurm.launch("-m", "cluster=local", *SMALL, *grid[1:], runs=tmp_path / "local")
    wait_for_empty_queue()
    local_runs = {run.name: run for run in all_runs(tmp_path / "local")}
    runs = {run.name: run for run in all_runs(slurm.runs)}
    assert len(runs) == count and set(local_runs) == set(runs)
    for name, run in runs.items():
        assert run.state() == "done" and len(events(run, "train")) == 1
        assert numbers(run) == numbers(local_runs[name]), name
        assert weights(run) == weights(local_runs[name]), name
    assert (slurm.runs / "report.html").exists()  # by the launch's last job
    assert f"{count} done; nothing to do" in slurm(*grid).stdout and not queue()

    lora = next(
        run for run in runs.values() if run.config()["peft"]["name"] == "lora" and run.config()["algo"]["name"] == "dapo"
    )
    assert not lora.analysis_path.exists()
    jobs = lora.jobs()
    assert "submitted 1 run" in slurm("-m", "peft=lora", "algo=dapo", "steps=4", "analysis=final").stdout
    wait_for_empty_queue()
    assert lora.state() == "done" and lora.analysis_path.exists()
    assert list(lora.jobs()) == ["evaluate"] and lora.jobs()["evaluate"] != jobs["evaluate"]
    assert [row["stage"] for row in events(lora, "done")] == ["train", "evaluate", "analyse"]


def test_a_launch_waits_for_its_canary(slurm, tmp_path):
    """The other runs start after the canary; if a run fails, the command that waited prints the error and exits with 1."""
    output = slurm("-m", "peft=lora", "steps=4", "canary=true", "wait=true", "hydra.launcher.poll_s=1").stdout
    assert "canary: job" in output and f"{only_run(slurm.runs).name}  done" in output
    canary = only_run(slurm.runs / ".canary")
    assert len(read_rows(canary.metrics_path)) == 2
    assert events(canary, "done")[-1]["time"] <= events(only_run(slurm.runs), "start")[0]["time"]
    problems = tmp_path / "too_long.jsonl"
    problems.write_text('{"question": "' + "long " * 200 + '", "answer": "1"}\n')
    failing = (f"data.path={problems}", "data.problems=null", "canary=true", "wait=true", "hydra.launcher.poll_s=1")
    refused = slurm(*failing, expect=1, runs=tmp_path / "failing")
    assert "1 of 1 runs are not done" in refused.stdout + refused.stderr
    assert re.search(r"The canary \S+ failed: Refused: No problem of", refused.stderr)
    assert "The canary" in rlvr("status", str(tmp_path / "failing"))
    assert not (only_run(tmp_path / "failing").path / "train.json").exists()  # the canary failed; the run did not start


def test_runs_continue_when_the_launching_process_is_killed(slurm):
    command = slurm.command("peft=none", "hydra.launcher.srun_args=[--no-kill]")
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: any(run.jobs() for run in all_runs(slurm.runs)))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_for_empty_queue()
    assert only_run(slurm.runs).state() == "done"


def test_code_and_configuration_are_frozen_at_submission(slurm, closed_partition, undisturbed, tmp_path):
    """Files of conf/ and modules are edited while a run is queued: the run uses the submitted files."""
    copy = tmp_path / "copy"
    for part in ("conf", "rlvr_sweeps", "hydra_plugins", "launch.py"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, copy / part)
    subprocess.run(slurm.command(), cwd=copy, check=True, capture_output=True, timeout=600)
    run = only_run(slurm.runs)
    edited = copy / "conf/model/tiny.yaml"
    assert "lr: 1e-3" in edited.read_text()
    edited.write_text(edited.read_text().replace("lr: 1e-3", "lr: 0.5"))
    for module in ("training/train", "training/trainer", "evaluation/evaluate", "launching/slurm/supervisor"):
        path = copy / f"rlvr_sweeps/{module}.py"
        assert path.exists()
        path.write_text("raise RuntimeError('edited')\n")
    closed_partition()
    wait_for_empty_queue()
    assert run.state() == "done"
    assert weights(run) == weights(undisturbed()) and numbers(run) == numbers(undisturbed())


def test_queued_runs_outside_the_new_grid_are_listed_and_continue(slurm, closed_partition):
    slurm("-m", "peft=lora,dora")
    lora, dora = sorted(all_runs(slurm.runs), key=lambda run: "dora" in run.name)
    for plan in ("true", "false"):
        output = slurm("-m", "peft=lora", f"plan={plan}").stdout
        assert f"no longer in this sweep's grid (they go on). To stop them: rlvr cancel {dora.name}" in output
    assert dora.jobs()["train"] in queue() and lora.jobs()["train"] in queue()
    assert "no longer in this sweep" not in slurm("sweep=rank", "plan=true").stdout


@pytest.mark.exhaustive  # one and two processes on one node; a test of test_slurm_faults.py has two nodes
def test_runs_on_one_gpu_two_gpus_and_two_nodes(slurm):
    two_processes = ("distributed=ddp", "distributed.processes=2", "training.per_device_batch_size=16", "steps=3")
    slurm("steps=3", gpus=True)
    slurm(*two_processes, "lr=2e-3", gpus=True)
    slurm(*two_processes, "lr=3e-3", "cluster.train.nodes=2", gpus=True)
    wait_for_empty_queue()
    by_rate = {}
    for run in all_runs(slurm.runs):
        assert run.state() == "done", run.failure_path.read_text() if run.failure_path.exists() else run.path
        cfg, start = run.config(), events(run, "start")[0]
        by_rate[cfg["lr"]] = (start["gpus"].count(",") + 1, read_json(run.record_path)["built"]["processes"])
    assert by_rate == {1e-3: (1, 1), 2e-3: (2, 2), 3e-3: (1, 2)}


def test_the_stock_launcher_runs_the_same_task(launch):
    launch(
        "-m", "cluster=submitit", *SMALL, "peft=none", "hydra.launcher.timeout_min=10", f"hydra.launcher.partition={PARTITION}"
    )
    assert only_run(launch.runs).state() == "done"


def test_rlvr_cancel_retry_and_logs_of_a_run(slurm):
    slurm("steps=12")  # so many that the training is not over before the command has started, on a slow machine too
    run = only_run(slurm.runs)
    wait_until(lambda: steps(run) >= 1)
    assert "cancelled" in rlvr("cancel", str(run.path))
    assert json.loads(rlvr("logs", str(run.path), "--json"))["log"].endswith("train.txt")
    wait_for_empty_queue()
    assert run.state(live=active_jobs()) == "lost"
    assert "submitted as jobs" in rlvr("retry", str(run.path))
    wait_for_empty_queue()
    assert run.state() == "done"
    refused = subprocess.run([sys.executable, "-m", "rlvr_sweeps.cli", "retry", str(run.path)], capture_output=True, text=True)
    assert refused.returncode == 1 and "is done: there is nothing to run again" in refused.stderr


def test_rlvr_cancel_of_a_sweep_and_of_all_runs(slurm, closed_partition):
    """A launch's report job stays while another of its runs is in the queue, and is cancelled with the last one."""
    folder = ("--runs-dir", str(slurm.runs))
    slurm("-m", "peft=dora,pissa")
    slurm("sweep=rank")
    dora, pissa = sorted((run for run in all_runs(slurm.runs) if "-lora-" not in run.name), key=lambda run: run.name)
    assert len(queue()) == 2 * (2 + 4) + 2  # two jobs of each run, and two reports
    refused = subprocess.run(
        [sys.executable, "-m", "rlvr_sweeps.cli", "cancel", "--sweep", "lr", *folder], capture_output=True, text=True
    )
    assert refused.returncode == 1 and "Sweeps with jobs in the queue: rank." in refused.stderr
    assert rlvr("cancel", dora.id, *folder) == f"{dora.name}: cancelled {', '.join(dora.jobs().values())}\n"
    assert len(queue()) == 2 * (1 + 4) + 2 and events(dora, "cancelled")
    of_pissa, of_report = rlvr("cancel", pissa.id, *folder).splitlines()
    assert of_pissa.startswith(f"{pissa.name}: cancelled") and of_report.startswith("report ")
    assert len(queue()) == 2 * 4 + 1
    slurm("-m", "peft=dora,pissa")
    *runs, report = rlvr("cancel", "--sweep", "rank", *folder).splitlines()
    assert len(runs) == 4 and all("-lora-" in line for line in runs) and report.startswith("report ")
    assert len(queue()) == 2 * 2 + 1
    assert len(json.loads(rlvr("cancel", "--all", "--json", *folder))) == 3 and not queue()


def test_rlvr_cancel_of_running_runs_one_by_one(slurm):
    """A run that ends slowly after its cancellation does not keep the report job of its launch."""
    slurm("-m", "peft=lora,dora", "steps=40")
    first, second = all_runs(slurm.runs)
    wait_until(lambda: steps(first) >= 1)
    rlvr("cancel", str(first.path))
    assert "report" in rlvr("cancel", str(second.path))
    wait_for_empty_queue()
    assert not (slurm.runs / "report.html").exists()
    assert [run.state(live=active_jobs()) for run in (first, second)] == ["lost", "lost"]
