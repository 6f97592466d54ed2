"""Test for every method, by GRPO steps on the embedded model, which parameters change, what is saved, and how runs resume.

All tests of a method use one training. The data are three problems and a step uses at least two, so that five steps pass the
end of an epoch.
"""

import copy
import json
import shutil
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlvr_sweeps.assets import locations
from rlvr_sweeps.assets.problems import load_problems, prompt_ids
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.files import read_rows
from rlvr_sweeps.reporting.hub.folder import adapter_refusal
from rlvr_sweeps.runs.checkpoints import checkpoints
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training import train as train_stage
from rlvr_sweeps.training.methods.adapters import has_residual, is_trained_parameter
from rlvr_sweeps.training.models import load_model
from rlvr_sweeps.training.seeded_sampling import sample
from rlvr_sweeps.training.trainer import RlvrTrainer
from tests.conftest import ALL_PROOFS_IN_CI, SHORTEST, choices, prepare

pytestmark = pytest.mark.slow
METHODS = [
    pytest.param(name, marks=[pytest.mark.xdist_group(name), *([] if name in ALL_PROOFS_IN_CI else [pytest.mark.exhaustive])])
    for name in choices("peft")
    if name != "none"
]


@dataclass
class Trained:
    """One finished training of a method, with its state at step 0."""

    run: Run
    cfg: Resolved
    trainer: RlvrTrainer
    facts: dict[str, Any]
    before: dict[str, torch.Tensor]  # parameters at step 0
    gap_at_step_0: float  # largest difference between the logits in training mode and those of the base


@pytest.fixture(params=METHODS, scope="module")
def trained(request, composer, three, tmp_path_factory):
    """Return the training of a method, which all its tests use: pytest runs them one after the other."""
    return train_once(*prepare(
        composer, three, tmp_path_factory.mktemp(request.param), f"peft={request.param}", *SHORTEST
    ))  # fmt: skip


def train_once(run: Run, cfg: Resolved) -> Trained:
    """Run the train stage; return its trainer with the parameters of step 0."""
    build, results = train_stage.build, []

    def build_and_record(*arguments):
        trainer, facts = build(*arguments)
        before = {key: value.detach().clone() for key, value in trainer.model.named_parameters()}
        ids = torch.arange(5, 45).view(2, 20)
        with torch.no_grad(), torch.random.fork_rng():
            gap = (trainer.model.train()(ids).logits - load_model(cfg)[0].eval()(ids).logits).abs().max()
        results.append(Trained(run, cfg, trainer, facts, before, float(gap)))
        return trainer, facts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_stage, "build", build_and_record)
        train_stage.train(run, cfg)
    return results[0]


def test_exactly_the_declared_parameters_change(trained):
    cfg, before = trained.cfg, trained.before
    assert trained.facts["asked"] == trained.facts["built"]
    everything = cfg["peft"]["trains"] == "everything"
    scalars = changed = kept_singular_values = 0
    for key, value in trained.trainer.model.named_parameters():
        different = value.detach() != before[key]
        if not (everything or is_trained_parameter(key, cfg["peft"])):
            assert not different.any(), key
        elif "vblora_logits" in key:  # only the chosen logits of each piece have a gradient
            assert different.any(-1).all(), key
        elif "lora_E" in key:  # AdaLoRA's singular values start at 0; those that it prunes are 0 again
            kept_singular_values += int(different.sum())
        elif not (everything and "embed_tokens" in key):  # rows of tokens that did not occur have no gradient
            assert different.any(), key
            scalars, changed = scalars + value.numel(), changed + int(different.sum())
    assert changed >= 0.99 * scalars
    if modules := sum("lora_E" in key for key in before):
        assert kept_singular_values == modules * cfg["peft"]["config"]["target_r"]
    rows = read_rows(trained.run.reach_path)
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert all(row["frozen_tensors_changed"] == 0 and row["reach"]["all"] > 0 for row in rows)


def test_the_saved_model_and_adapter_are_the_policy(trained):
    run, cfg = trained.run, trained.cfg
    live = trained.trainer.model.eval()
    tokenizer = AutoTokenizer.from_pretrained(run.merged_path)
    ids = torch.tensor([prompt_ids(tokenizer, problem, None) for problem in load_problems(cfg["data"])[:1]])
    plain = AutoModelForCausalLM.from_pretrained(run.merged_path)
    with torch.no_grad():
        expected = live(ids).logits
        torch.testing.assert_close(plain(ids).logits, expected, atol=1e-4, rtol=1e-4)
        if adapter_refusal(cfg) is None:  # `rlvr export --adapter` publishes it
            base = AutoModelForCausalLM.from_pretrained(locations.locate(cfg["model"]["path"], cfg["model"]["revision"]))
            loaded = PeftModel.from_pretrained(base, run.adapter_path).eval()
            torch.testing.assert_close(loaded(ids).logits, expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(loaded.merge_and_unload()(ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert run.start_path.exists() == has_residual(cfg["peft"])


def test_in_training_mode_the_policy_starts_as_the_base_unless_the_methods_file_states_why_not(trained):
    assert (trained.gap_at_step_0 > 1e-2) == bool(trained.cfg["peft"]["not_the_base_in_training"])


class Interrupted(BaseException):
    """An interruption that the train stage does not catch."""


def test_a_run_resumed_in_its_second_epoch_equals_the_uninterrupted_run_bit_for_bit(
    trained, composer, three, tmp_path, monkeypatch
):
    uninterrupted = trained.run
    resumed, cfg = prepare(composer, three, tmp_path, f"peft={trained.cfg['peft']['name']}", *SHORTEST)

    class InterruptingKeeper(train_stage.CheckpointKeeper):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(train_stage, "CheckpointKeeper", InterruptingKeeper)
        train_stage.train(resumed, cfg)
    assert [path.name for path in checkpoints(resumed.checkpoints_path)] == ["checkpoint-2"]
    assert sum(row["sampled_groups"] for row in read_rows(resumed.metrics_path)[:2]) > 3, "an epoch has passed"
    train_stage.train(resumed, cfg)

    def rows_without_times(run):
        return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in read_rows(run.metrics_path)]

    assert rows_without_times(resumed) == rows_without_times(uninterrupted)
    assert len(rows_without_times(uninterrupted)) == 5
    weights = "model.safetensors"
    assert (resumed.merged_path / weights).read_bytes() == (uninterrupted.merged_path / weights).read_bytes()
    assert read_rows(resumed.reach_path) == read_rows(uninterrupted.reach_path)


@pytest.mark.parametrize("trained", [pytest.param("dora", marks=pytest.mark.xdist_group("dora"))], indirect=True)
def test_a_run_killed_between_the_last_step_and_the_export_is_exported(trained, composer, three, tmp_path, monkeypatch):
    uninterrupted = trained.run
    resumed, cfg = prepare(composer, three, tmp_path, "peft=dora", *SHORTEST)

    def interrupt(*_):
        raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(train_stage, "export", interrupt)
        train_stage.train(resumed, cfg)
    train_stage.train(resumed, cfg)
    assert [row["step"] for row in read_rows(resumed.metrics_path)] == [1, 2, 3, 4, 5]
    weights = "model.safetensors"
    assert (resumed.merged_path / weights).read_bytes() == (uninterrupted.merged_path / weights).read_bytes()


def test_dynamic_sampling_trains_on_mixed_groups_only_and_records_its_rounds(prepared):
    run, cfg = prepared("peft=lora", "algo=dapo", "steps=3")
    train_stage.train(run, cfg)
    rows = read_rows(run.metrics_path)
    assert all(row["trained_zero_std_share"] == 0 and row["bound_hit"] == 0 for row in rows)
    assert any(row["sampling_rounds"] > 1 for row in rows)
    assert all(row["sampled_groups"] == 4 * row["sampling_rounds"] for row in rows)
    plain, cfg = prepared("peft=lora", "algo=grpo", "steps=3")
    train_stage.train(plain, cfg)
    assert any(row["trained_zero_std_share"] > 0 for row in read_rows(plain.metrics_path))
    assert all(row["sampling_rounds"] == 1 for row in read_rows(plain.metrics_path))


def test_adalora_ends_at_its_target_rank_and_records_its_orthogonality_loss(shortest):
    run, cfg = shortest("peft=adalora", "steps=10")
    train_stage.train(run, cfg)
    rows = read_rows(run.metrics_path)
    ranks = [row["rank_mean"] for row in rows]
    assert ranks[0] == 8 and ranks == sorted(ranks, reverse=True)
    assert ranks[-1] == cfg["peft"]["config"]["target_r"] == 4
    assert all(row["orthogonality_loss"] > 0 for row in rows)


def test_lora_plus_has_two_learning_rates(prepared):
    run, cfg = prepared("peft=lora_plus", "steps=3")
    trainer, facts = train_stage.build(run, cfg)
    assert facts["built"]["lr_ratio"] == 2.0
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["lr"] == (2e-3 if "lora_B" in names[id(parameter)] else 1e-3)


def test_a_change_of_a_frozen_tensor_stops_the_run(shortest, monkeypatch):
    run, cfg = shortest("peft=lora", "steps=3")
    build = train_stage.build

    def build_with_a_trainable_norm(*arguments):
        trainer, facts = build(*arguments)
        trainer.model.base_model.model.model.norm.weight.requires_grad_(True)
        return trainer, facts

    monkeypatch.setattr(train_stage, "build", build_with_a_trainable_norm)
    with pytest.raises(RuntimeError, match=r"frozen tensors changed during training: .*norm\.weight"):
        train_stage.train(run, cfg)


def test_a_method_that_differs_from_the_configured_one_is_refused(prepared, monkeypatch):
    """The bug of the released code: every method name builds LoRA."""
    run, cfg = prepared("peft=dora", "steps=3")
    lora = prepared("peft=lora")[1]["peft"]
    attach = train_stage.attach
    monkeypatch.setattr(train_stage, "attach", lambda model, _, *arguments: attach(model, copy.deepcopy(lora), *arguments))
    with pytest.raises(train_stage.Refused, match=r"peft\.use_dora: configured True, built False"):
        train_stage.train(run, cfg)
    assert json.loads(run.record_path.read_text())["built"]["trained"] == ["lora_A", "lora_B"]


@pytest.mark.parametrize("algo", [name for name in choices("algo") if name != "none"])
def test_loss_and_gradient_do_not_depend_on_the_micro_batch(shortest, algo):
    """A step cut in two has the same loss and gradient: for this reason the run id does not contain the micro-batch size."""
    rows = []
    for size in (16, 8):
        settings = (f"algo={algo}", "steps=3", "dropout=0", f"training.per_device_batch_size={size}")
        run, cfg = shortest(*settings, runs=f"of{size}")
        train_stage.train(run, cfg)
        rows.append(read_rows(run.metrics_path))
    for whole, cut in zip(*rows, strict=True):
        assert cut["reward_mean"] == whole["reward_mean"]
        assert cut["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3)
        assert cut["loss"] == pytest.approx(whole["loss"], abs=1e-5)


def test_decoding_settings_in_the_model_folder_are_ignored(prepared, world, tmp_path):
    """A model may have a repetition penalty in generation_config.json, which transformers' generate would apply as well."""
    folder = tmp_path / "penalised"
    shutil.copytree(locations.locate(world["model"]["path"], world["model"]["revision"]), folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(
        json.dumps(settings | {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1})
    )
    samples = []
    for path in (world["model"]["path"], str(folder)):
        _, cfg = prepared(f"model.path={path}")
        model, tokenizer = load_model(cfg)
        prompts = [prompt_ids(tokenizer, problem, None) for problem in load_problems(cfg["data"])]
        ends = {"pad_id": tokenizer.pad_token_id, "end_ids": [tokenizer.eos_token_id]}
        samples.append(sample(model, prompts, range(12), max_tokens=24, temperature=1.0, top_p=1.0, **ends))
    assert samples[0] == samples[1]
