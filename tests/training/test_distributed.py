"""Test that two processes, with DDP and with ZeRO-2 with the optimizer on the CPU, equal each other and one process."""

import json
import os
import subprocess
import sys
import time

import pytest

from rlvr_sweeps.files import read_rows
from rlvr_sweeps.runs.directory import Run, all_runs
from rlvr_sweeps.training import train as train_stage
from tests.conftest import ROOT, choices
from tests.training.two_processes import overrides

pytestmark = pytest.mark.slow
# One method of each kind of trained parameter. ZeRO-2 with AdaLoRA is refused at launch: tests/config/test_checks.py.
UNDER_ZERO = ["dora", "full", "ln_tuning", "lora", "lora_plus", "oft", "pissa", "vera"]
UNDER_DDP = ["adalora", *UNDER_ZERO]
FURTHER_METHODS = [name for name in choices("peft") if name not in ("none", *UNDER_DDP)]
ROUNDED = "lora,model.autocast_bf16=true"  # the recipes' setting: DeepSpeed's autocast, else accelerate's
# Several forward passes per step, cut by length, after a worst-case step: the same results as "lora".
CUT = "lora,training.per_device_batch_size=2,data.max_prompt_tokens=40,training.worst_case_first=always"


@pytest.fixture(scope="module")
def by_one_process(composer, twelve, tmp_path_factory):
    """Return a function that trains a method by one process and returns the rows of metrics.jsonl."""
    folder = tmp_path_factory.mktemp("alone")

    def rows(method):
        cfg = composer.point([*overrides(composer, method, twelve, "single", 1), f"runs_dir={folder}"]).cfg
        run = Run.of(cfg)
        run.prepare(cfg)
        train_stage.train(run, cfg)
        return read_rows(run.metrics_path)

    return rows


def test_processes_with_different_batch_sizes_are_refused_at_the_start(tmp_path):
    """Both processes end with the error, and neither waits for the other one."""
    code = (
        "import os\nfrom pathlib import Path\nfrom accelerate import Accelerator\n"
        "from rlvr_sweeps.training.build_check import refuse_different_batch_sizes\n"
        "accelerator, rank = Accelerator(cpu=True), int(os.environ['RANK'])\n"
        "refuse_different_batch_sizes(accelerator, {'training': {'per_device_batch_size': 8}})\n"
        "try:\n    refuse_different_batch_sizes(accelerator, {'training': {'per_device_batch_size': 8 >> rank}})\n"
        "except RuntimeError as error:\n    Path(__file__).with_name(str(rank)).write_text(str(error))\n"
        "accelerator.end_training()"
    )
    (tmp_path / "two.py").write_text(code)
    torchrun(tmp_path / "two.py")
    for rank in (0, 1):  # a file per process: printed lines of two processes can be mixed
        message = (tmp_path / str(rank)).read_text()
        assert "processes begin with different numbers of completions per forward pass, [8, 4]" in message


def train_by_two(kind, methods, problems, folder):
    """Train methods by two processes; return the results of two_processes.py, by method."""
    torchrun(ROOT / "tests/training/two_processes.py", folder, problems, kind, *methods)
    return json.loads((folder / f"{kind}.json").read_text())


def torchrun(*program):
    """Run two processes of a program; return the finished torchrun process, with its output as text."""
    options = ["--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *program]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-6000:]
    return process


@pytest.mark.xdist_group("ranks")  # one worker computes by_one_process
@pytest.mark.parametrize(
    ("kind", "methods"),
    [("ddp", [*UNDER_DDP, ROUNDED, CUT]), ("zero2_offload", [*UNDER_ZERO, ROUNDED, CUT])],
    ids=["ddp", "zero2_offload"],
)
def test_ranks_are_equal_and_equal_one_process(kind, methods, twelve, by_one_process, tmp_path):
    results = train_by_two(kind, methods, twelve, tmp_path)
    assert sorted(results) == sorted(methods)
    rounded, plain = results.pop(ROUNDED), results["lora"]
    assert rounded["dtypes"] == ["torch.float32"] and rounded["weights"][0] == rounded["weights"][1]
    assert rounded["rows"][0]["grad_norm"] != plain["rows"][0]["grad_norm"], "autocast rounds products"
    assert rounded["rows"][0]["loss"] == pytest.approx(by_one_process(ROUNDED)[0]["loss"], abs=1e-3)
    assert rounded["rows"][0]["grad_norm"] == pytest.approx(by_one_process(ROUNDED)[0]["grad_norm"], rel=0.02)
    whole, cut = by_one_process("lora"), results[CUT]["rows"]
    assert [row["loss"] for row in cut] == pytest.approx([row["loss"] for row in whole], abs=1e-4)
    assert cut[0]["entropy"] == pytest.approx(whole[0]["entropy"], abs=1e-4)
    assert cut[0]["update_positions"] < whole[0]["update_positions"]
    compare_with_one_process(results, by_one_process)
    assert results["lora_plus"]["lrs"] == [1e-4, 2e-4]
    assert results["lora"]["lrs"] == [1e-4]


@pytest.mark.exhaustive
@pytest.mark.xdist_group("ranks of the further methods")
@pytest.mark.parametrize("kind", ["ddp", "zero2_offload"])
def test_ranks_of_the_further_methods_are_equal_and_equal_one_process(kind, twelve, by_one_process, tmp_path):
    results = train_by_two(kind, FURTHER_METHODS, twelve, tmp_path)
    assert sorted(results) == FURTHER_METHODS
    compare_with_one_process(results, by_one_process)


def compare_with_one_process(results, by_one_process):
    """Assert that both ranks of each training have the same weights, and the rows of one process."""
    for method, result in results.items():
        first, second = result["weights"]
        assert first == second, method
        for row, expected in zip(result["rows"], by_one_process(method), strict=True):
            # Seeds do not depend on the number of processes, so completions are equal.
            assert row["reward_mean"] == expected["reward_mean"], method
            assert row["loss"] == pytest.approx(expected["loss"], abs=1e-4), method
            assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=2e-3), method


def test_a_launch_with_two_processes_is_killed_and_resumes(launch):
    """The launcher starts torchrun; after kill -9 of the launcher the same command resumes the run."""
    two_processes = ("distributed=ddp", "distributed.processes=2", "training.per_device_batch_size=32")
    grid = ("peft=lora", "algo=dapo", "steps=8", *two_processes, "training.save_every=2", "benchmark.tier1.k=1")
    process = subprocess.Popen(launch.command(*grid), cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until(lambda: any(len(read_rows(run.metrics_path)) >= 3 for run in all_runs(launch.runs)))
    process.kill()
    process.wait()
    (run,) = all_runs(launch.runs)
    wait_until(lambda: run.state() == "lost")
    launch(*grid)
    assert run.state() == "done"
    assert [row["step"] for row in read_rows(run.metrics_path)] == list(range(1, 9))
    assert json.loads(run.record_path.read_text())["built"]["processes"] == 2
    assert [row["resumed_from"] for row in read_rows(run.attempts_path) if row["event"] == "train"][1] is not None


def wait_until(condition):
    """Return when the condition holds; fail after five minutes."""
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError("waited too long")
