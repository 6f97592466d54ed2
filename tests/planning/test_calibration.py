"""Test the way from measurements of a GPU to the constants of the cost model: what goes in comes out, failures give nothing."""

import json

import pytest
from omegaconf import OmegaConf

from rlvr_sweeps.assets.architecture import architecture
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.planning import calibration, timing
from rlvr_sweeps.planning.hardware import Gpu, accuracy, constants, known_gpus, rates

OVERHEAD_S, TRAINING, SLOWDOWN, CONTEXT = 0.0064, 0.41, 0.28, 160


@pytest.fixture
def results(composer):
    """Return the results of a session on an H100 whose seconds are those of the time model with the constants above."""
    cfg, gpu = composer.point(["model=r1_qwen_1_5b"]).cfg, known_gpus()["h100"]
    model = architecture(cfg)
    passes = []
    for sequences in (1, 32, 256):
        seconds = timing.pass_s(cfg, "rollout", model, gpu, sequences, sequences * CONTEXT, OVERHEAD_S, 2)
        passes.append({"sequences": sequences, "pass_s": seconds})
    batch, mean = 32, 8192
    necessary = 2 * timing.forward_operations(model, batch, mean, 4 / 3 * mean**2)  # as bench/gpu/step.py counts
    update_s = 1.5 * necessary / (TRAINING * gpu.bf16_tflops * 1e12)  # recomputation is half as much again
    step_s = update_s + 4.0
    step = {
        "implementation": "rlvr_sweeps", "method": "lora", "seconds": step_s, "memory_gib": 60.0,
        "phases": {"sampling": 3.0, "forward": update_s / 3, "backward": 2 * update_s / 3, "rest": 1.0},
        "share_of_peak": necessary / step_s / (gpu.bf16_tflops * 1e12),
    }  # fmt: skip
    return {
        "date": "2026-12-01", "device": "NVIDIA H100 80GB HBM3", "model": "random weights", "seconds": 540.0,
        "architecture": model, "machine": {},
        "parts": {
            "decode": {"bytes_per_weight": 2, "context_tokens": CONTEXT, "passes": passes, "start_s": 70.0,
                       "cache_tokens": 2_000_000, "max_num_seqs": 1024, "host_gib": 5.0},
            "step": {"results": [{"implementation": "trl", "method": "lora", "error": "out of memory"}, step]},
            "share": {"alone_s": 10.0, "together_s": 12.8, "slowdown": SLOWDOWN},
        },
    }  # fmt: skip


def test_the_constants_of_the_time_model_are_recovered(results):
    assert calibration.entry(results) == (
        "h100",
        {"date": "2026-12-01", "machine": "NVIDIA H100 80GB HBM3", "decode_overhead_s": OVERHEAD_S, "training": TRAINING,
         "shared_gpu": SLOWDOWN},
    )  # fmt: skip


def test_the_printed_line_is_yaml_that_the_planner_reads(results, tmp_path, capsys, monkeypatch):
    file = tmp_path / "first_contact.json"
    file.write_text(json.dumps(results))
    assert calibration.main([str(file)]) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("  h100:"))
    measured = OmegaConf.to_container(OmegaConf.create(f"measured:\n{line}\n"))["measured"]
    h100: Gpu = known_gpus()["h100"]
    before = rates(h100)
    monkeypatch.setitem(constants(), "measured", measured)
    after = rates(h100)
    assert (after["decode_overhead_s"], after["training"], after["shared_gpu"]) == (OVERHEAD_S, TRAINING, SLOWDOWN)
    assert after.keys() == before.keys() and after["bandwidth"] == before["bandwidth"]
    assert accuracy(h100) < accuracy(known_gpus()["h200"])
    assert "32 sequences:" in printed and "failed: out of memory" in printed and "1.56 times the throughput" in printed


def test_a_part_that_failed_gives_no_constant(results):
    results["parts"]["decode"] = {"error": "not finished after 180 s"}
    _, values = calibration.entry(results)
    assert "decode_overhead_s" not in values and values["training"] == TRAINING
    assert any("decode   failed: not finished after 180 s" in line for line in calibration.text(results))


def test_a_gpu_without_a_data_sheet_is_refused_and_a_cpu_calibrates_nothing(results, tmp_path, capsys):
    with pytest.raises(Refused, match=r"Tesla T4, which conf/hardware\.yaml does not list"):
        calibration.entry(results | {"device": "Tesla T4"})
    file = tmp_path / "first_contact.json"
    file.write_text(json.dumps(results | {"device": "cpu"}))
    assert calibration.main([str(file)]) == 0
    assert "no constant of conf/hardware.yaml follows" in capsys.readouterr().out


def test_entries_of_measured_have_known_keys():
    for name, values in constants()["measured"].items():
        assert name in known_gpus() and values.keys() <= {"date", "machine", *rates(known_gpus()[name])}
        assert {"date", "machine"} <= values.keys()
