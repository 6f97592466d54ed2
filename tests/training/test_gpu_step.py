"""Test bench/gpu/step.py, which a person with a GPU runs, on a CPU with the embedded model."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

STEP = [sys.executable, "bench/gpu/step.py", "--methods", "lora", "--batch", "16", "--per-device", "4", "--seconds", "1"]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_both_implementations_are_measured_on_the_same_padded_rows(tmp_path):
    file = tmp_path / "step.json"
    command = [*STEP, "--model", "tiny", "--tokens", "160", "--output", str(file)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    report = json.loads(file.read_text())
    own, trl = report["results"]
    assert (own["implementation"], trl["implementation"], report["completions"]) == ("rlvr_sweeps", "trl", "given")
    assert own["tokens"] == trl["tokens"] == 8 * (48 + 96) + sum(10 * (index + 1) for index in range(16))
    assert own["mask_bytes"] == 0 and trl["mask_bytes"] == 4 * 256**2
    assert own["tokens"] <= own["positions"] < trl["positions"]
    for result in (own, trl):
        assert sum(result["phases"].values()) == pytest.approx(result["seconds"], rel=0.2) and result["steps"] == 2
        assert result["memory_gib"] > 0 and 0 < result["share_of_peak"] < 1 and result["tokens_per_second"] > 0
    assert report["ratios"]["lora: trl / rlvr_sweeps"] == trl["seconds"] / own["seconds"]


@pytest.mark.exhaustive
def test_more_tokens_than_the_model_has_positions_are_refused_with_a_sentence():
    process = subprocess.run([*STEP, "--model", "tiny", "--tokens", "250"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2 and "256 positions, which --tokens 250 exceeds. Use at most 192." in process.stderr


def test_a_batch_that_cannot_be_divided_is_refused_with_a_sentence():
    process = subprocess.run([*STEP, "--batch", "12", "--per-device", "5"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2 and "--batch 12 must be a multiple of --per-device 5 and of 8." in process.stderr
