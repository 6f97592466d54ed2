"""Test which settings change a run id, which do not, and that existing ids stay the same."""

import json

import pytest

from rlvr_sweeps.config.identity import evaluation_spec, run_id, run_name
from rlvr_sweeps.runs.directory import Run
from tests.conftest import ROOT

GOLDEN = json.loads((ROOT / "tests/config/golden_ids.json").read_text())


@pytest.mark.parametrize("overrides", GOLDEN)
def test_existing_ids_stay_the_same(composer, overrides):
    """A changed id separates finished runs from their configuration: change golden_ids.json only with a line in CHANGELOG."""
    assert run_name(composer.point(overrides.split()).cfg) == GOLDEN[overrides]


@pytest.mark.parametrize(
    "override",
    ["evaluation.seed=7", "evaluation.top_p=0.9", "benchmark.tier1.k=4", "training.per_device_batch_size=16",
     "training.save_every=5", "training.gradient_checkpointing=true", "runs_dir=elsewhere", "retry=true", "sweep=rank",
     "cluster=submitit", "alpha=16", "data.problems=null", "dropout=0.05", "verifier.timeout_s=9", "verifier=math"],
)  # fmt: skip
def test_settings_outside_the_id_do_not_change_it(composer, override):
    assert run_id(composer.point([override]).cfg) == run_id(composer.point([]).cfg)


@pytest.mark.parametrize(
    "override",
    ["rank=4", "alpha=8", "dropout=0", "modules=mlp", "lr=2e-3", "batch_size=128", "steps=61", "seed=1", "peft=dora",
     "algo=grpo", "rollout.temperature=0.9", "rollout.group_size=4", "model.system_prompt=hi", "data.max_prompt_tokens=60",
     "training.trl.weight_decay=0.1", "+algo.trl.delta=2", "verifier=choice", "verifier.weight=0.5"],
)  # fmt: skip
def test_settings_of_the_training_change_the_id(composer, override):
    assert run_id(composer.point([override]).cfg) != run_id(composer.point([]).cfg)


def test_sampling_rounds_in_one_call_have_the_id_of_rounds(composer):
    at_once, in_rounds = (composer.point(["rollout=vllm", f"rollout.continuous={value}"]).cfg for value in ("true", "false"))
    assert run_id(at_once) == run_id(in_rounds)


def test_a_dial_that_the_method_ignores_does_not_change_the_id(composer):
    """A sweep file may set rank for all its methods; full fine-tuning has the same id at every rank."""
    cfg = composer.point(["peft=full"]).cfg
    assert run_id(cfg | {"rank": 99, "alpha": 3.0, "dropout": 0.5, "modules": "mlp"}) == run_id(cfg)
    assert run_id(composer.point(["modules=all"]).cfg) == run_id(composer.point([]).cfg)


def test_base_has_one_id_for_every_training_setting(composer):
    names = {
        run_name(composer.point(["peft=none", *overrides]).cfg)
        for overrides in ([], ["algo=grpo"], ["steps=3", "seed=5", "lr=1"])
    }
    assert len(names) == 1


def test_a_configuration_read_back_from_its_file_has_the_same_id(point):
    for overrides in (
        ["lr=1e-5"],
        ["peft=none"],
        ["peft=pissa", "dropout=0"],
        ["model=r1_qwen_1_5b", "rollout=hf", "distributed=single"],
    ):
        cfg = point(*overrides)
        run = Run.of(cfg)
        run.prepare(cfg)
        (run.path / ".config.json").unlink()  # read the YAML itself
        assert run.config() == cfg


def test_the_evaluation_spec_is_equal_exactly_where_the_samples_are_equal(composer):
    def spec(*overrides):
        return evaluation_spec(composer.point(overrides).cfg)

    assert spec() == spec("evaluation.batch_size=3") == spec("lr=1") == spec("benchmark.tier1.problems=null")
    assert len({spec(), spec("evaluation.seed=1"), spec("benchmark.tier1.k=4"), spec("evaluation.temperature=1")}) == 4
    assert len({spec(), spec("verifier=choice"), spec("verifier=choice", "verifier.correct_at=0.5")}) == 3
    assert spec("verifier=choice") == spec("verifier=choice", "verifier.timeout_s=9", "verifier.name=mine")


def test_the_weights_that_sample_are_part_of_the_ids_where_they_are_not_the_models_own(composer):
    def identity(*overrides):
        cfg = composer.point(overrides).cfg
        return run_id(cfg), evaluation_spec(cfg)

    plain, rounded = identity(), identity("model=r1_qwen_1_5b")
    assert identity("rollout.weights=float32", "evaluation.weights=float32") == plain
    for weights in ("bfloat16", "stochastic"):
        assert identity(f"rollout.weights={weights}")[0] != plain[0] and identity(f"rollout.weights={weights}")[1] == plain[1]
        assert identity(f"evaluation.weights={weights}") == (plain[0], identity(f"evaluation.weights={weights}")[1]) != plain
    assert composer.point(["model=r1_qwen_1_5b"]).cfg["rollout"]["weights"] == "stochastic"
    before = composer.point(["model=r1_qwen_1_5b"]).cfg
    for stage in ("rollout", "evaluation"):
        del before[stage]["weights"]  # as in a configuration that was stored before this setting existed: the nearest values
    papers = identity("model=r1_qwen_1_5b", "rollout.weights=bfloat16", "evaluation.weights=bfloat16")
    assert (run_id(before), evaluation_spec(before)) == papers and papers[0] != rounded[0] and papers[1] != rounded[1]
