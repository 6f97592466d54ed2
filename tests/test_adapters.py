"""Attaching a method: what is trained, what the model computes at step 0, and what was asked beside what was built."""

import copy

import pytest
import torch

from rlvr_sweeps import record
from rlvr_sweeps.adapters import attach
from rlvr_sweeps.errors import Refused
from tests.conftest import PROMPTS, choices
from tests.test_sync import method

METHODS = [name for name in choices("peft") if name != "none"]
IDS = torch.arange(60).view(3, 20)


@pytest.mark.parametrize("name", METHODS)
def test_at_step_0_the_policy_is_the_base(model, composer, name):
    base = model(IDS).logits
    torch.testing.assert_close(
        attach(model, method(composer, name), seed=1, prompts=PROMPTS).eval()(IDS).logits, base, atol=2e-4, rtol=2e-4
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_declared_kind_of_parameter_is_trained_in_every_module_and_nothing_else(model, composer, name):
    asked = method(composer, name)
    adapted = attach(model, asked, seed=1, prompts=PROMPTS)
    named = adapted.named_parameters(remove_duplicate=False)  # TinyLoRA's layers share theirs
    trainable = [key for key, parameter in named if parameter.requires_grad]
    if name == "full":
        assert len(trainable) == len(list(model.parameters()))
        return
    targets = asked["config"]["target_modules"]
    for kind in asked["trained"]:
        of_kind = {key.split(f".{kind}")[0].rpartition(".")[2] for key in trainable if f".{kind}" in key} - {"base_model"}
        assert of_kind == set(targets), kind
    assert all(any(f".{kind}" in key for kind in asked["trained"]) for key in trainable)


def test_no_two_methods_build_the_same(model, composer):
    """Same trainable parameters, same function at step 0 and same optimizer would be one method under two names."""
    built = {}
    for name in METHODS:
        asked = method(composer, name)
        adapted = attach(copy.deepcopy(model), asked, seed=1, prompts=PROMPTS)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01)
        built[name] = (round(float(adapted.eval()(IDS).logits.detach().double().sum()), 6), asked["lr_ratio"])
    assert len(set(built.values())) == len(built), built


def test_milora_takes_the_smallest_singular_directions(model, composer):
    weight = copy.deepcopy(model.model.layers[1].mlp.down_proj.weight.detach())
    adapted = attach(model, method(composer, "milora"), seed=1, prompts=PROMPTS)
    layer = adapted.base_model.model.model.layers[1].mlp.down_proj
    taken = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer.get_base_layer().weight + taken, weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.linalg.svdvals(taken)[:8], torch.linalg.svdvals(weight)[-8:], atol=1e-5, rtol=1e-3)


def test_targets_that_match_nothing_are_refused(model, composer):
    asked = method(composer, "lora")
    with pytest.raises(Refused, match="matches no layer"):
        attach(model, asked | {"config": asked["config"] | {"target_modules": ["no_such_layer"]}}, seed=1, prompts=PROMPTS)


def test_what_was_built_is_compared_with_what_was_asked():
    wanted = {"adapter": "LORA", "scaling": 2.0, "trained": ["lora_A", "lora_B"]}
    record.compare(wanted, dict(wanted))
    with pytest.raises(Refused, match=r"scaling: asked 2\.0, built 1\.0"):
        record.compare(wanted, wanted | {"scaling": 1.0})
    with pytest.raises(Refused, match="built None"):
        record.compare(wanted, {"adapter": "LORA", "scaling": 2.0})
