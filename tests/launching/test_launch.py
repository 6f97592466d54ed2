"""Test launch.py as a command: training on the embedded world that is interrupted, repeated, or launched twice at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from rlvr_sweeps.cli import main as rlvr
from rlvr_sweeps.config.identity import run_name
from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import Run, all_runs
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
SHORT = ("steps=4", "training.save_every=2", "benchmark.tier1.k=2", "~benchmark.tier2", "~benchmark.tier3", "~benchmark.tier4",
         "~benchmark.tier5")  # fmt: skip
SAMPLES = "eval/tier1.jsonl"


def summaries(folder):
    """Return the evaluation summaries of a folder's runs, by run name."""
    return {run.name: json.loads(run.summary_path.read_text()) for run in all_runs(folder)}


def rows_without_times(run):
    """Return the rows of metrics.jsonl without their times."""
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in read_rows(run.metrics_path)]


def have_equal_results(first: Run, second: Run) -> bool:
    """Return whether two runs have equal metrics, weights and samples."""
    files = ["merged/model.safetensors", SAMPLES]
    return rows_without_times(first) == rows_without_times(second) and all(
        (first.path / file).read_bytes() == (second.path / file).read_bytes() for file in files
    )


def test_a_grid_of_methods_is_computed_once_and_a_second_launch_changes_nothing(launch, capsys):
    grid = ("-m", "peft=none,full,lora,dora,pissa", "algo=dapo,dr_grpo", *SHORT)
    first = launch(*grid)
    assert "9 runs: 9 new; 9 to do." in first.stdout
    rows = summaries(launch.runs)
    assert len(rows) == 9
    for run in all_runs(launch.runs):
        row = rows[run.name]
        assert run.state() == "done"
        assert row["tier1/n"] == 40 and row["tier1/k"] == 2 and 0 <= row["avg"] <= 1 and row["avg_se"] > 0
        samples = read_rows(run.path / SAMPLES)
        assert len(samples) == 80 and len({sample["seed"] for sample in samples}) == 80
        assert read_json(run.questions_path)["tier1"][samples[0]["problem"]][1] == samples[0]["gold"]
        if row["peft"] != "none":
            assert [step["step"] for step in read_rows(run.metrics_path)] == [1, 2, 3, 4]
            record = json.loads(run.record_path.read_text())
            assert record["asked"] == record["built"]
            assert not run.checkpoints_path.exists()
    counts = {row["peft"]: row["trainable"] for row in rows.values()}
    assert counts["full"] == 517_760
    assert counts["dora"] > counts["lora"] == counts["pissa"] > counts["none"] == 0

    before = {path: path.stat().st_mtime_ns for path in launch.runs.rglob("*") if path.is_file()}
    second = launch(*grid)
    assert "9 done; nothing to do." in second.stdout
    assert {path: path.stat().st_mtime_ns for path in launch.runs.rglob("*") if path.is_file()} == before

    rlvr(["report", str(launch.runs)])
    shown = capsys.readouterr().out
    assert "DoRA" in shown and "±" in shown
    page = (launch.runs / "report.html").read_text()
    assert page.count("<tr title=") == 9 and "<svg" in page and "src=" not in page and "https://" not in page.split("<svg")[0]
    assert len((launch.runs / "report.csv").read_text().splitlines()) == 10


def test_a_killed_launch_resumes_with_the_results_of_an_undisturbed_launch(launch, tmp_path):
    grid = ("-m", "peft=lora,dora", "steps=12", *SHORT[1:])
    process = subprocess.Popen(launch.command(*grid), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(lambda: any(len(read_rows(run.metrics_path)) >= 5 for run in all_runs(launch.runs)))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: all(run.state() == "lost" for run in all_runs(launch.runs)))
    run = max(all_runs(launch.runs), key=lambda run: len(read_rows(run.metrics_path)))
    assert list(run.checkpoints_path.glob("checkpoint-*"))
    incomplete = run.checkpoints_path / "checkpoint-99"  # newer than the complete ones
    shutil.copytree(next(run.checkpoints_path.glob("checkpoint-*")), incomplete)
    (incomplete / "trainer_state.json").write_text("{")
    assert "2 lost; 2 to do" in launch(*grid).stdout
    resumed = [row["resumed_from"] for row in read_rows(run.attempts_path) if row["event"] == "train"]
    assert resumed[0] is None and resumed[1].startswith("checkpoint-")
    undisturbed = tmp_path / "undisturbed"
    launch(*grid, runs=undisturbed)
    for run in all_runs(launch.runs):
        assert have_equal_results(run, Run(undisturbed / run.name)), run.name


def test_a_run_alone_on_a_machine_uses_all_of_its_cores(launch):
    small = ("batch_size=16", "rollout.max_tokens=14", "signal_check=off")  # other tests use the cores at the same time
    launch("cluster.threads=null", *SHORT[1:], "steps=1", *small)
    (run,) = all_runs(launch.runs)
    assert json.loads(run.record_path.read_text())["surroundings"]["threads"] == len(os.sched_getaffinity(0))


def test_two_launches_at_once_compute_every_run_once(launch):
    grid = ("-m", "peft=lora,rslora,pissa", *SHORT)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(launch.command(*grid), **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    for run in all_runs(launch.runs):
        assert run.state() == "done"
        assert [row["event"] for row in read_rows(run.attempts_path)] == ["start", "train", "done"]


def test_a_failure_is_printed_and_recorded_and_retried_with_retry_true(launch, tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"question": "Start with 1 A:+1 mod 10."}\n')
    grid = ("-m", "peft=lora", f"data.path={problems}", "data.problems=null", *SHORT)
    failed = launch(*grid, expect=1)
    assert "has no field 'answer'; its fields are question" in failed.stderr
    (run,) = all_runs(launch.runs)
    assert run.state() == "failed" and "Traceback" in run.log_path("train").read_text()
    assert "retry=true" in launch(*grid).stdout
    problems.write_text(
        "".join(f'{{"question": "Start with {start} A:+1 mod 10.", "answer": "{(start + 1) % 10}"}}\n' for start in range(10))
    )
    launch(*grid, "retry=true")
    assert run.state() == "done"


READ_STANDARD_INPUT = """
import os, pathlib, sys
from rlvr_sweeps.launching import fork_server
from rlvr_sweeps.runs.directory import Run
fork_server.run_stage = lambda stage, run: print(os.read(0, 99))
fork_server.start_stage("evaluate", Run(pathlib.Path(sys.argv[1])), threads=1)
print(os.read(0, 99))
"""


def test_a_stage_does_not_read_the_fork_servers_standard_input(composer, tmp_path):
    """Transformers reads standard input before it runs code of a model's repository."""
    cfg = composer.point(["peft=none", f"runs_dir={tmp_path}"]).cfg
    run = Run.of(cfg)
    run.prepare(cfg)
    process = subprocess.run(
        [sys.executable, "-c", READ_STANDARD_INPUT, run.path], input=b"the next run", cwd=ROOT, capture_output=True, check=True
    )
    assert (run.log_path("evaluate").read_text(), process.stdout) == ("b''\n", b"b'the next run'\n")


IMPORT_IN_ADVANCE = """
import gc, pathlib, sys
from rlvr_sweeps.launching import fork_server
from rlvr_sweeps.runs.directory import Run
fork_server.import_everything()
fork_server.in_advance(lambda: fork_server.import_model_class(Run(pathlib.Path(sys.argv[1]))))
fork_server.in_advance(lambda: 1 / 0)
import torch
print("deepspeed" in sys.modules, "transformers.models.qwen2.modeling_qwen2" in sys.modules, torch.cuda.is_initialized())
print(gc.isenabled(), gc.get_freeze_count() > 100_000)
"""


def test_the_fork_server_has_imported_the_modules_of_a_training_and_prints_nothing(composer, tmp_path):
    cfg = composer.point(["peft=lora", f"runs_dir={tmp_path}"]).cfg
    run = Run.of(cfg)
    run.prepare(cfg)
    process = subprocess.run(
        [sys.executable, "-c", IMPORT_IN_ADVANCE, run.path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (process.stdout.split(), process.stderr) == (["True", "True", "False", "True", "True"], "")


def test_new_evaluation_settings_keep_the_model_and_the_old_samples(launch):
    launch("peft=lora", *SHORT)
    (run,) = all_runs(launch.runs)
    trained = (run.merged_path / "model.safetensors").stat().st_mtime_ns
    first = json.loads(run.summary_path.read_text())
    old = (run.path / SAMPLES).read_bytes()
    assert "evaluate with the new settings" in launch("peft=lora", *SHORT, "evaluation.temperature=1.3").stdout
    assert (run.merged_path / "model.safetensors").stat().st_mtime_ns == trained
    assert json.loads(run.summary_path.read_text())["avg"] != first["avg"]
    assert [path.read_bytes() for path in (run.path / "old").rglob("tier1.jsonl")] == [old]
    (run.path / SAMPLES).write_bytes((run.path / SAMPLES).read_bytes()[:-40])  # an incomplete last line
    run.stage_path("evaluate").unlink()
    expected = json.loads(run.summary_path.read_text())
    launch("peft=lora", *SHORT, "evaluation.temperature=1.3")
    summary = json.loads(run.summary_path.read_text())
    assert {k: v for k, v in summary.items() if k != "finished"} == {k: v for k, v in expected.items() if k != "finished"}


def test_plan_true_writes_nothing(launch, tmp_path):
    assert "2 new; 2 to do" in launch("-m", "peft=lora,dora", "plan=true").stdout
    assert not list(tmp_path.iterdir())


def test_one_refused_point_stops_the_grid_before_anything_runs(launch, tmp_path):
    refused = launch("-m", "peft=lora,full", "rank=4", expect=1)
    assert "peft=full has no rank" in refused.stderr and "Traceback" not in refused.stderr
    assert "There is no setting 'rnak'" in launch("rnak=3", expect=1).stderr
    unresolved = launch("data.path=${nowhere}", expect=1).stderr  # without -m
    assert "Interpolation key 'nowhere' not found" in unresolved and "Traceback" not in unresolved
    assert "cannot be written" in launch("peft=lora", runs="/proc/none", expect=1).stderr
    assert not list(tmp_path.rglob("config.yaml"))


def test_runs_at_once_use_different_gpus_unless_they_share_them(launch, monkeypatch):
    """The devices are only numbers in CUDA_VISIBLE_DEVICES: no GPU is needed to test which run uses which."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    launch("-m", "peft=lora,rslora", "algo=grpo", *SHORT)
    used = {json.loads(run.record_path.read_text())["surroundings"]["gpus"] for run in all_runs(launch.runs)}
    assert used == {"4", "7"}
    launch(
        "-m",
        "peft=lora,rslora",
        "algo=dapo_released,dr_grpo",
        "cluster.runs_per_gpu=2",
        "evaluation.engine=transformers",
        *SHORT,
        runs=launch.runs / "shared",
    )
    runs = all_runs(launch.runs / "shared")
    shared = [json.loads(run.record_path.read_text())["surroundings"]["gpus"] for run in runs]
    assert sorted(shared) == ["4", "4", "7", "7"]
    rows = [row for run in runs for row in read_rows(run.attempts_path)]
    assert max(row["time"] for row in rows if row["event"] == "start") < min(
        row["time"] for row in rows if row["event"] == "done"
    )
    four_processes = ("distributed=ddp", "distributed.processes=4", "training.per_device_batch_size=16")
    assert "this machine has 2" in launch("peft=lora", *four_processes, expect=1).stderr


def wait_for(condition, timeout_s=300):
    """Return when the condition holds; fail after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


@pytest.mark.parametrize("overrides", [(), ("peft=pissa", "rank=4"), ("peft=none",), ("peft=vera", "algo=grpo")])
def test_a_point_is_the_same_run_with_and_without_m(launch, composer, overrides):
    name = run_name(composer.point(list(overrides)).cfg)
    for mode in ((), ("-m",)):
        assert name in launch(*mode, *overrides, "plan=true").stdout, mode
