"""Test parameter counts: equal to the golden counts of the paper's models and to what PEFT and transformers build."""

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from rlvr_sweeps.assets.architecture import adapter_parameters, architecture, base_parameters, trained_parameters
from rlvr_sweeps.training.build_check import parameter_counts
from rlvr_sweeps.training.methods.adapters import attach
from tests.conftest import PROMPTS, ROOT, choices

GOLDEN = json.loads((ROOT / "tests/assets/golden_counts.json").read_text())
WIDTHS = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
    "vocab_size": 160,
}  # fmt: skip
SHAPES = {  # together: attention and MLP biases, another head size with norms, tied and untied embeddings
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "mistral": {"tie_word_embeddings": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("row", GOLDEN)
def test_counts_of_the_papers_models_equal_the_golden_counts(composer, row):
    peft, *dials = row.split()
    counts = []
    for model in ("r1_qwen_1_5b", "r1_qwen_7b"):
        cfg = composer.point([f"model={model}", "rollout=hf", "distributed=single", f"peft={peft}", *dials]).cfg
        counts.append(trained_parameters(cfg, architecture(cfg)))
    assert counts == GOLDEN[row]


@pytest.mark.parametrize("kind", SHAPES)
def test_base_parameters_of_every_decoder_equal_those_of_the_built_model(kind):
    stated = {"model_type": kind, **WIDTHS, **SHAPES[kind]}
    assert base_parameters(stated) == sum(parameter.numel() for parameter in build_model(stated).parameters())


def test_the_size_of_qwen3_0_6b_is_that_of_its_published_weights(composer):
    """Its model.safetensors of 1,503,300,328 bytes holds the tied output layer too: 2 bytes a number, and a header."""
    stated = architecture(composer.point(["model=qwen3_0_6b", "rollout=hf"]).cfg)
    output_layer = stated["vocab_size"] * stated["hidden_size"]
    assert 0 < 1_503_300_328 - 2 * (base_parameters(stated) + output_layer) < 50_000


@pytest.mark.parametrize("peft", choices("peft"))
def test_counts_of_every_method_equal_those_of_the_built_model(composer, peft):
    """Compare the trained parameters, and the frozen parameters and buffers that the method adds."""
    method = composer.point([f"peft={peft}"]).cfg["peft"]
    stated = {"model_type": "qwen3", **WIDTHS, **SHAPES["qwen3"]}
    if method["trains"] == "nothing":
        assert adapter_parameters(method, stated) == {}
        return
    base = build_model(stated)
    adapted = attach(base, method, seed=0, prompts=[[token % 160 for token in row] for row in PROMPTS])
    trained = trained_parameters({"peft": method}, stated)
    built_count = parameter_counts(adapted)["trainable"]
    if method["initialisation"] == "activations":
        assert abs(trained / built_count - 1) < 0.1  # EVA redistributes ranks between layers
        return
    assert trained == built_count
    added = [parameter for name, parameter in adapted.named_parameters() if is_added_and_frozen(name, method["trained"])]
    frozen = sum(parameter.numel() for parameter in added)
    kinds = adapter_parameters(method, stated)
    assert sum(count for kind, count in kinds.items() if kind not in ("buffers", *method["trained"])) == frozen
    if "buffers" in kinds:
        buffers = {buffer.data_ptr(): buffer.nbytes for name, buffer in adapted.named_buffers() if "rotary" not in name}
        assert kinds["buffers"] * 4 == sum(buffers.values())


def is_added_and_frozen(name, trained):
    """Return whether a parameter is added by the method and frozen."""
    added = ("lora_A", "lora_B", "lora_E", "ranknum")
    return any(part in name.split(".") for part in added) and not any(part in name.split(".") for part in trained)


def build_model(stated):
    """Build the model of a configuration with random weights."""
    settings = dict(stated)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
