"""Test that a model of another architecture needs only a YAML file, and that a launch refuses an unsuitable model folder."""

import json
import re
import shutil

import pytest
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForCausalLM

from rlvr_sweeps.assets.model_folder import refuse_unfit, thinking_warning
from rlvr_sweeps.assets.tiny import make_tokenizer
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import all_runs

SHAPES = {
    "llama": {"attention_bias": False},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
}
MODEL_FILE = """# @package _global_
# A small model with random weights.
defaults:
  - local
  - _self_
model: {{name: {name}, path: {folder}, opens_think: true}}
data: {{path: {problems}, max_prompt_tokens: 64}}
benchmark: {{local: {{path: {problems}, problems: 12, k: 2}}}}
rank: 4
lr: 1e-3
batch_size: 8
steps: 3
rollout: {{group_size: 4, max_tokens: 16}}
training: {{gradient_checkpointing: false}}
"""


def write_model(kind, folder):
    """Save a decoder of `kind` with random weights and the tokenizer of the embedded world in a folder; return the folder."""
    tokenizer = make_tokenizer()
    config = AutoConfig.for_model(
        kind, vocab_size=288, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, max_position_embeddings=128, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **SHAPES.get(kind, {}),
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    """Return the folder of a Qwen2 model."""
    return write_model("qwen2", tmp_path_factory.mktemp("models") / "qwen2")


@pytest.fixture
def model_copy(qwen2, tmp_path):
    """Return the folder of a copy of that model, which a test may change."""
    return shutil.copytree(qwen2, tmp_path / "copy")


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_a_yaml_file_alone_trains_and_evaluates(kind, launch, twelve, tmp_path):
    folder = write_model(kind, tmp_path / kind)
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/toy.yaml").write_text(MODEL_FILE.format(name=kind, folder=folder, problems=twelve))
    launch("--config-dir", str(tmp_path / "conf"), "model=toy", "algo=grpo", "peft=dora", "signal_check=off")
    (run,) = all_runs(launch.runs)
    assert [row["step"] for row in read_rows(run.metrics_path)] == [1, 2, 3]
    record, summary = read_json(run.record_path), read_json(run.summary_path)
    assert record["asked"] == record["built"] and record["built"]["modules"]["q_proj"] == 2
    assert summary["avg"] is not None and read_json(run.merged_path / "config.json")["model_type"] == kind


def test_the_papers_recipe_accepts_a_local_folder(composer, qwen2):
    cfg = composer.point(["model=r1_qwen_1_5b", f"model.path={qwen2}", "rollout.max_tokens=64", *SHORT, "rank=2"]).cfg
    refuse_unfit([cfg])


SHORT = ("data.max_prompt_tokens=32", "evaluation.max_tokens=64")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
        (lambda folder: write_template(folder, lambda text: text.replace("<think>", "")), "requires that it ends in <think>"),
    ],
)
def test_a_folder_that_cannot_be_trained_from_is_refused(composer, model_copy, damage, message):
    cfg = composer.point(["model=r1_qwen_1_5b", f"model.path={model_copy}", "rollout.max_tokens=64", *SHORT, "rank=2"]).cfg
    refuse_unfit([cfg])
    damage(model_copy)
    with pytest.raises(Refused, match=message):
        refuse_unfit([cfg])


def test_a_template_without_think_is_named_where_only_answers_after_thinking_count(composer, model_copy):
    overrides = ["model=local", "model.name=mine", f"model.path={model_copy}", "rollout.max_tokens=64", "rank=2", "data=tiny",
                 "benchmark=tiny", "data.revision=x", "data.problems=null"]  # fmt: skip
    cfg = composer.point(overrides).cfg
    assert thinking_warning(cfg) is None
    write_template(model_copy, lambda text: text.replace("<think>", ""))
    assert "does not open <think>" in thinking_warning(cfg) and "grading=any" in thinking_warning(cfg)
    assert thinking_warning(cfg | {"grading": "any"}) is None


def test_the_template_of_a_hub_model_is_read_from_the_hubs_cache(composer, model_copy, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    overrides = ["model=local", "model.name=mine", "model.path=owner/mine", "rollout.max_tokens=64", "rank=2", "data=tiny",
                 "benchmark=tiny", "data.revision=x", "data.problems=null"]  # fmt: skip
    cfg = composer.point(overrides).cfg
    assert thinking_warning(cfg) is None, "nothing is known of a model that is not on this machine"
    write_template(model_copy, lambda text: text.replace("<think>", ""))
    cached = tmp_path / "hub/models--owner--mine"
    shutil.copytree(model_copy, cached / "snapshots/0123abc")
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0123abc")
    assert "does not open <think>" in thinking_warning(cfg)


def write_template(folder, change):
    """Replace the chat template of a model folder by `change` of its text."""
    path = folder / "chat_template.jinja"
    path.write_text(change(path.read_text()))


def test_a_template_in_tokenizer_config_is_checked_unless_it_needs_transformers(composer, model_copy):
    cfg = composer.point(["model=r1_qwen_1_5b", f"model.path={model_copy}", "rollout.max_tokens=64", *SHORT, "rank=2"]).cfg
    (model_copy / "chat_template.jinja").unlink()
    settings = json.loads((model_copy / "tokenizer_config.json").read_text())
    for template, refused in (("{{ messages[0].content }}", True), ("{{ strftime_now('%d') }}", False)):
        (model_copy / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
        if refused:
            with pytest.raises(Refused, match="requires that it ends in <think>"):
                refuse_unfit([cfg])
        else:
            refuse_unfit([cfg])


def test_the_run_checks_a_template_that_the_launch_cannot_render(composer, model_copy):
    """In the first seconds of a run the tokenizer renders the template."""
    from rlvr_sweeps.training.models import load_tokenizer

    cfg = composer.point(["model=r1_qwen_1_5b", f"model.path={model_copy}", "rollout.max_tokens=64", *SHORT, "rank=2"]).cfg
    load_tokenizer(cfg)
    write_template(model_copy, lambda text: text.replace("'<|assistant|><think>'", "strftime_now('%d')"))
    refuse_unfit([cfg])
    with pytest.raises(Refused, match="requires that it ends in <think>"):
        load_tokenizer(cfg)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=r1_qwen_1_5b", "rollout.max_tokens=131000"], "rollout.max_tokens=131000 are 131,512 tokens"),
        (["model=r1_qwen_1_5b", "peft=none", "evaluation.max_tokens=131000"], "has 131,072 positions"),
    ],
)
def test_more_tokens_than_the_models_positions_are_refused(composer, overrides, message):
    with pytest.raises(Refused, match=re.escape(message)):
        composer.point(overrides)
