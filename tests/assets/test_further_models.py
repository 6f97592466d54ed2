"""A model of another architecture is one YAML file; a folder that cannot be trained from is refused at launch, and says why."""

import json
import re
import shutil

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from rlvr_sweeps.assets.model_folder import refuse_unfit
from rlvr_sweeps.assets.tiny import make_tokenizer
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import all_runs

SHAPES = {
    "llama": {"attention_bias": False},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
}
FILE = """# @package _global_
# A toy with random weights.
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
    """A decoder of `kind` with random weights and the embedded world's tokenizer, as save_pretrained leaves it."""
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
    return write_model("qwen2", tmp_path_factory.mktemp("models") / "qwen2")


@pytest.fixture
def copied(qwen2, tmp_path):
    return shutil.copytree(qwen2, tmp_path / "copy")


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_a_yaml_file_alone_trains_and_evaluates(kind, launch, twelve, tmp_path):
    folder = write_model(kind, tmp_path / kind)
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/toy.yaml").write_text(FILE.format(name=kind, folder=folder, problems=twelve))
    launch("--config-dir", str(tmp_path / "conf"), "model=toy", "algo=grpo", "peft=dora")
    (run,) = all_runs(launch.runs)
    assert [row["step"] for row in read_rows(run.metrics_path)] == [1, 2, 3]
    record, summary = read_json(run.record_path), read_json(run.summary_path)
    assert record["asked"] == record["built"] and record["built"]["modules"]["q_proj"] == 2
    assert summary["avg"] is not None and read_json(run.merged_path / "config.json")["model_type"] == kind


def test_the_papers_recipe_takes_a_local_folder(composer, qwen2):
    cfg = composer.point(["model=r1_qwen_1_5b", f"model.path={qwen2}", "rollout.max_tokens=64", *SHORT, "rank=2"]).cfg
    refuse_unfit([cfg])


SHORT = ("data.max_prompt_tokens=32", "evaluation.max_tokens=64")


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
        (lambda folder: write_template(folder, lambda text: text.replace("<think>", "")), "requires that it ends in <think>"),
    ],
)
def test_a_folder_that_cannot_be_trained_from(composer, copied, break_it, says):
    cfg = composer.point(["model=r1_qwen_1_5b", f"model.path={copied}", "rollout.max_tokens=64", *SHORT, "rank=2"]).cfg
    refuse_unfit([cfg])
    break_it(copied)
    with pytest.raises(Refused, match=says):
        refuse_unfit([cfg])


def write_template(folder, change):
    path = folder / "chat_template.jinja"
    path.write_text(change(path.read_text()))


def test_a_template_in_the_tokenizers_settings_counts_and_one_that_needs_transformers_waits(composer, copied):
    cfg = composer.point(["model=r1_qwen_1_5b", f"model.path={copied}", "rollout.max_tokens=64", *SHORT, "rank=2"]).cfg
    (copied / "chat_template.jinja").unlink()
    settings = json.loads((copied / "tokenizer_config.json").read_text())
    for template, refused in (("{{ messages[0].content }}", True), ("{{ strftime_now('%d') }}", False)):
        (copied / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
        if refused:
            with pytest.raises(Refused, match="requires that it ends in <think>"):
                refuse_unfit([cfg])
        else:
            refuse_unfit([cfg])


def test_the_run_judges_what_the_launch_could_not(composer, copied):
    """The tokenizer's own reading of the template, in a run's first seconds."""
    from rlvr_sweeps.training.models import load_tokenizer

    cfg = composer.point(["model=r1_qwen_1_5b", f"model.path={copied}", "rollout.max_tokens=64", *SHORT, "rank=2"]).cfg
    load_tokenizer(cfg)
    write_template(copied, lambda text: text.replace("'<|assistant|><think>'", "strftime_now('%d')"))
    refuse_unfit([cfg])
    with pytest.raises(Refused, match="requires that it ends in <think>"):
        load_tokenizer(cfg)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model=r1_qwen_1_5b", "rollout.max_tokens=131000"], "rollout.max_tokens=131000 are 131,512 tokens"),
        (["model=r1_qwen_1_5b", "peft=none", "evaluation.max_tokens=131000"], "has 131,072 positions"),
    ],
)
def test_longer_than_the_models_positions(composer, overrides, says):
    with pytest.raises(Refused, match=re.escape(says)):
        composer.point(overrides)
