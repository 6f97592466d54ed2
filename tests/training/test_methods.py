"""Every method through real GRPO steps on the embedded model: what moves, what is saved, and that a resumed run is the run.

One training per method serves all claims about it. The data are three problems and a step takes at least two, so that five
steps pass epoch boundaries.
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
from rlvr_sweeps.runs.checkpoints import checkpoints
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training import train as train_stage
from rlvr_sweeps.training.methods.adapters import is_trained_parameter
from rlvr_sweeps.training.models import load_model
from rlvr_sweeps.training.seeded_sampling import sample
from rlvr_sweeps.training.trainer import RlvrTrainer
from tests.conftest import SHORTEST, choices, prepare

pytestmark = pytest.mark.slow
METHODS = [name for name in choices("peft") if name != "none"]


@dataclass
class Trained:
    """One finished training of a method, with what it started from."""

    run: Run
    cfg: Resolved
    trainer: RlvrTrainer
    facts: dict[str, Any]
    before: dict[str, torch.Tensor]  # parameters at step 0
    gap_at_step_0: float  # largest difference between its logits in training mode and the base's


_trainings: dict[str, Trained] = {}  # of this worker: the last one, since models and optimizers are large


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in METHODS])
def trained(request, composer, three, tmp_path_factory):
    """The one training of a method that every claim about it is checked on."""
    if request.param not in _trainings:
        _trainings.clear()
        _trainings[request.param] = train_once(*prepare(
            composer, three, tmp_path_factory.mktemp(request.param), f"peft={request.param}", *SHORTEST
        ))  # fmt: skip
    return _trainings[request.param]


def train_once(run: Run, cfg: Resolved) -> Trained:
    """Run the train stage, and keep what its trainer started from."""
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


def test_exactly_the_declared_parameters_moved(trained):
    cfg, before = trained.cfg, trained.before
    assert trained.facts["asked"] == trained.facts["built"]
    everything = cfg["peft"]["trains"] == "everything"
    scalars = moved = kept_singular_values = 0
    for key, value in trained.trainer.model.named_parameters():
        different = value.detach() != before[key]
        if not (everything or is_trained_parameter(key, cfg["peft"])):
            assert not different.any(), key
        elif "lora_E" in key:  # AdaLoRA's singular values start at 0; those that it prunes are 0 again
            kept_singular_values += int(different.sum())
        elif not (everything and "embed_tokens" in key):  # rows of tokens that did not occur have no gradient
            assert different.any(), key
            scalars, moved = scalars + value.numel(), moved + int(different.sum())
    assert moved >= 0.99 * scalars
    if modules := sum("lora_E" in key for key in before):
        assert kept_singular_values == modules * cfg["peft"]["config"]["target_r"]
    rows = read_rows(trained.run.reach_path)
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert all(row["frozen_tensors_changed"] == 0 and row["reach"]["all"] > 0 for row in rows)


def test_what_is_saved_is_the_policy(trained):
    run, cfg = trained.run, trained.cfg
    live = trained.trainer.model.eval()
    tokenizer = AutoTokenizer.from_pretrained(run.merged_path)
    ids = torch.tensor([prompt_ids(tokenizer, problem, None) for problem in load_problems(cfg["data"])[:1]])
    plain = AutoModelForCausalLM.from_pretrained(run.merged_path)
    with torch.no_grad():
        wanted = live(ids).logits
        torch.testing.assert_close(plain(ids).logits, wanted, atol=1e-4, rtol=1e-4)
        if cfg["peft"]["trains"] == "adapter" and not cfg["peft"]["not_the_base_in_training"]:
            base = AutoModelForCausalLM.from_pretrained(locations.locate(cfg["model"]["path"], cfg["model"]["revision"]))
            again = PeftModel.from_pretrained(base, run.adapter_path).eval()
            torch.testing.assert_close(again(ids).logits, wanted, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(again.merge_and_unload()(ids).logits, wanted, atol=1e-4, rtol=1e-4)
    assert run.start_path.exists() == bool(cfg["peft"]["not_the_base_in_training"])


def test_in_training_mode_too_the_policy_starts_as_the_base_or_the_file_says_why_not(trained):
    assert (trained.gap_at_step_0 > 1e-2) == bool(trained.cfg["peft"]["not_the_base_in_training"])


class PulledPlug(BaseException):
    pass


def test_resumed_past_an_epoch_it_is_the_uninterrupted_run_bit_for_bit(trained, composer, three, tmp_path, monkeypatch):
    straight = trained.run
    broken, cfg = prepare(composer, three, tmp_path, f"peft={trained.cfg['peft']['name']}", *SHORTEST)

    class Puller(train_stage.CheckpointKeeper):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise PulledPlug

    with monkeypatch.context() as patch, pytest.raises(PulledPlug):
        patch.setattr(train_stage, "CheckpointKeeper", Puller)
        train_stage.train(broken, cfg)
    assert [path.name for path in checkpoints(broken.checkpoints_path)] == ["checkpoint-2"]
    assert sum(row["sampled_groups"] for row in read_rows(broken.metrics_path)[:2]) > 3, "an epoch has passed"
    train_stage.train(broken, cfg)

    def science(run):
        return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in read_rows(run.metrics_path)]

    assert science(broken) == science(straight)
    assert len(science(straight)) == 5
    weights = "model.safetensors"
    assert (broken.merged_path / weights).read_bytes() == (straight.merged_path / weights).read_bytes()
    assert read_rows(broken.reach_path) == read_rows(straight.reach_path)


@pytest.mark.parametrize("trained", [pytest.param("dora", marks=pytest.mark.xdist_group("dora"))], indirect=True)
def test_killed_between_the_last_step_and_the_export(trained, composer, three, tmp_path, monkeypatch):
    straight = trained.run
    broken, cfg = prepare(composer, three, tmp_path, "peft=dora", *SHORTEST)

    def unplugged(*_):
        raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(train_stage, "export", unplugged)
        train_stage.train(broken, cfg)
    train_stage.train(broken, cfg)
    assert [row["step"] for row in read_rows(broken.metrics_path)] == [1, 2, 3, 4, 5]
    weights = "model.safetensors"
    assert (broken.merged_path / weights).read_bytes() == (straight.merged_path / weights).read_bytes()


def test_dynamic_sampling_trains_on_mixed_groups_alone_and_says_what_that_cost(prepared):
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


def test_adalora_ends_at_its_target_and_its_loss_is_there(shortest):
    run, cfg = shortest("peft=adalora", "steps=10")
    train_stage.train(run, cfg)
    rows = read_rows(run.metrics_path)
    ranks = [row["rank_mean"] for row in rows]
    assert ranks[0] == 8 and ranks == sorted(ranks, reverse=True)
    assert ranks[-1] == cfg["peft"]["config"]["target_r"] == 4
    assert all(row["orthogonality_loss"] > 0 for row in rows)


def test_lora_plus_has_its_two_rates(prepared):
    run, cfg = prepared("peft=lora_plus", "steps=3")
    trainer, facts = train_stage.build(run, cfg)
    assert facts["built"]["lr_ratio"] == 2.0
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["lr"] == (2e-3 if "lora_B" in names[id(parameter)] else 1e-3)


def test_a_frozen_tensor_that_moves_stops_the_run(shortest, monkeypatch):
    run, cfg = shortest("peft=lora", "steps=3")
    build = train_stage.build

    def leaky(*arguments):
        trainer, facts = build(*arguments)
        trainer.model.base_model.model.model.norm.weight.requires_grad_(True)
        return trainer, facts

    monkeypatch.setattr(train_stage, "build", leaky)
    with pytest.raises(RuntimeError, match=r"frozen tensors changed during training: .*norm\.weight"):
        train_stage.train(run, cfg)


def test_the_wrong_method_under_a_name_is_refused(prepared, monkeypatch):
    """The released code's bug: every name builds plain LoRA."""
    run, cfg = prepared("peft=dora", "steps=3")
    lora = prepared("peft=lora")[1]["peft"]
    attach = train_stage.attach
    monkeypatch.setattr(train_stage, "attach", lambda model, _, *rest: attach(model, copy.deepcopy(lora), *rest))
    with pytest.raises(train_stage.Refused, match=r"peft\.use_dora: asked True, built False"):
        train_stage.train(run, cfg)
    assert json.loads(run.record_path.read_text())["built"]["trained"] == ["lora_A", "lora_B"]


@pytest.mark.parametrize("algo", [name for name in choices("algo") if name != "none"])
def test_micro_batches_are_not_science(shortest, algo):
    """Cut in two, a step has the same loss and gradient: the id leaves the micro-batch out for that reason."""
    rows = []
    for size in (16, 8):
        asked = (f"algo={algo}", "steps=3", "dropout=0", f"training.per_device_batch_size={size}")
        run, cfg = shortest(*asked, runs=f"of{size}")
        train_stage.train(run, cfg)
        rows.append(read_rows(run.metrics_path))
    for whole, cut in zip(*rows, strict=True):
        assert cut["reward_mean"] == whole["reward_mean"]
        assert cut["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3)
        assert cut["loss"] == pytest.approx(whole["loss"], abs=1e-5)


def test_a_models_own_decoding_settings_stay_out_of_ours(prepared, world, tmp_path):
    """A hub model may bring a repetition penalty, which transformers' generate would add to what is configured."""
    place = tmp_path / "penalised"
    shutil.copytree(locations.locate(world["model"]["path"], world["model"]["revision"]), place)
    settings = json.loads((place / "generation_config.json").read_text())
    (place / "generation_config.json").write_text(json.dumps(settings | {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1}))
    samples = []
    for path in (world["model"]["path"], str(place)):
        _, cfg = prepared(f"model.path={path}")
        model, tokenizer = load_model(cfg)
        prompts = [prompt_ids(tokenizer, problem, None) for problem in load_problems(cfg["data"])]
        ends = {"pad_id": tokenizer.pad_token_id, "end_ids": [tokenizer.eos_token_id]}
        samples.append(sample(model, prompts, range(12), max_tokens=24, temperature=1.0, top_p=1.0, **ends))
    assert samples[0] == samples[1]
