"""Test rlvr profile: phases add up to the step, operations follow from the shapes, and unknown values are omitted."""

import json

import pytest

from rlvr_sweeps.cli import main as rlvr
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import write_json
from rlvr_sweeps.planning.profile import as_dict, measured_peak, profile
from rlvr_sweeps.runs.directory import Run

ROW = {
    "rollout_s": 6.0, "sync_s": 1.0, "reward_s": 0.5, "logprobs_s": 0.0, "update_s": 3.0, "rest_s": 0.5, "sampled_groups": 16,
    "completion_tokens_mean": 100.0, "update_positions": 40_000, "update_tokens": 20_000,
}  # fmt: skip

# Matrix parameters of the tiny Qwen2 by hand: q, o 128², k, v 128·64, gate, up, down 128·256, 3 layers, biases, norms, head
MATRICES = 3 * (2 * 128**2 + 2 * 128 * 64 + 3 * 128 * 256 + 128 + 2 * 64 + 2 * 128) + 128 + 288 * 128


@pytest.fixture
def trained(point):
    """Return a function that makes a trained run with a slow first step, on a given device."""

    def make(device, *overrides, **columns):
        cfg = point(*overrides)
        run = Run.of(cfg)
        run.prepare(cfg)
        write_json(run.record_path, {"surroundings": {"device": device}})
        rows = [ROW | columns | {"step": step, "update_s": 99.0 if step == 1 else ROW["update_s"]} for step in range(1, 6)]
        run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return run

    return make


def test_phases_and_operations_against_values_by_hand(trained):
    result = profile(trained("NVIDIA H100 80GB HBM3", "peft=lora"))
    by_name = {phase.name: phase for phase in result.phases}
    assert {name: phase.seconds for name, phase in by_name.items()} == {
        "rollout": 5.0, "sync": 1.0, "reward": 0.5, "log-probabilities": 0.0, "update": 3.0, "rest": 0.5,
    }  # fmt: skip
    assert result.step_s == 10 and sum(phase.share for phase in result.phases) == pytest.approx(1) and result.steps == 4
    assert result.padding == pytest.approx(0.5)
    tokens = 20_000 / 64  # per completion
    forward = 64 * (2 * MATRICES * tokens + 2 * tokens**2 * 3 * 128)
    assert by_name["update"].operations == pytest.approx(2 * forward)
    assert by_name["update"].of_peak == pytest.approx(2 * forward / 3.0 / 989e12, rel=0.01)
    prompt, cached = tokens - 100, 16 * 7  # of 16 groups of 8 completions; a group's prompt is computed once
    everything = 16 * 8 * (2 * MATRICES * tokens + 2 * tokens**2 * 3 * 128)
    assert by_name["rollout"].operations == pytest.approx(
        everything - cached * (2 * MATRICES * prompt + 2 * prompt**2 * 3 * 128)
    )
    assert by_name["log-probabilities"].operations is None and by_name["reward"].of_peak is None


def test_both_samplers_and_an_update_by_prompt_compute_the_prompt_of_a_group_once(trained):
    hf, vllm = (
        {phase.name: phase.operations for phase in profile(trained(None, *engine)).phases} for engine in ([], ["rollout=vllm"])
    )
    assert hf["rollout"] == vllm["rollout"]
    by_prompt = {phase.name: phase.operations for phase in profile(trained(None, "training.micro_batches=by_prompt")).phases}
    assert by_prompt["rollout"] > hf["rollout"], "the positions of the update then hold an eighth of each prompt"


def test_full_fine_tuning_recomputing_and_scoring_cost_more_passes(trained):
    plain = {phase.name: phase.operations for phase in profile(trained(None)).phases}
    full_run = trained(None, "peft=full", "training.gradient_checkpointing=true", logprobs_s=0.4)
    costly = {phase.name: phase.operations for phase in profile(full_run).phases}
    assert costly["update"] == 2 * plain["update"] == 4 * costly["log-probabilities"]


def test_the_measured_peak_of_a_core_is_plausible():
    assert 1e9 < measured_peak() < 1e12 and 1e9 < measured_peak(2) < 1e12


def test_an_unknown_gpu_has_no_peak(trained):
    result = profile(trained("Some New GPU"))
    assert result.peak is None and all(phase.of_peak is None for phase in result.phases)
    assert as_dict(result)["padding"] == 0.5


def test_a_run_without_steps_or_phases_is_refused(trained, point):
    cfg = point("seed=9")
    empty = Run.of(cfg)
    empty.prepare(cfg)
    with pytest.raises(Refused, match="no step yet"):
        profile(empty)
    without_phases = trained(None)
    rows = [{key: value for key, value in ROW.items() if key != "rest_s"} | {"step": step} for step in (1, 2)]
    without_phases.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(Refused, match="did not note its phases"):
        profile(without_phases)


def test_rlvr_profile_prints_a_table_or_json(trained, capsys):
    run = trained(None)
    rlvr(["profile", run.name, "--runs-dir", str(run.path.parent)])
    output = capsys.readouterr().out
    assert "of the peak" in output and "50 % of the update's positions are padding" in output
    rlvr(["profile", run.name, "--runs-dir", str(run.path.parent), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert [phase["name"] for phase in facts["phases"]][:2] == ["rollout", "sync"]
