"""DoRA's factored norm against PEFT's own DoRA: values, gradients, and norms that follow the weights."""

import copy

import pytest
import torch

from rlvr_sweeps.training.methods.adapters import attach
from rlvr_sweeps.training.methods.dora import FactoredDora
from tests.training.test_merging import method

IDS = torch.arange(60).view(3, 20)


def both(model, composer, dropout=0.0):
    """(PEFT's, factored): the same weights, none of them at its start."""
    made = []
    for factored in (False, True):
        chosen = method(composer, "dora") | {"factored_norm": factored}
        chosen["config"]["lora_dropout"] = dropout
        policy = attach(copy.deepcopy(model), chosen, seed=3)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        made.append(policy.train())
    assert sum(isinstance(layer, FactoredDora) for layer in made[1].modules()) == 3 * 7
    assert not any(isinstance(layer, FactoredDora) for layer in made[0].modules())
    return made


def outcome(policy):
    torch.manual_seed(4)  # the same dropout
    policy.zero_grad()
    logits = policy(IDS).logits
    logits.log_softmax(-1)[..., 0].sum().backward()
    return logits.detach(), {name: value.grad for name, value in policy.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_are_pefts(model, composer, dropout, training):
    plain, factored = (outcome(policy.train(training)) for policy in both(model, composer, dropout))
    torch.testing.assert_close(factored[0], plain[0], atol=1e-5, rtol=1e-5)
    assert plain[1].keys() == factored[1].keys() and len(plain[1]) == 3 * 3 * 7
    for name, gradient in plain[1].items():
        torch.testing.assert_close(factored[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_norms_follow_adapter_and_base(model, composer):
    _, policy = both(model, composer)
    layer = policy.base_model.model.model.layers[1].mlp.down_proj
    vector, a, b = layer.lora_magnitude_vector["default"], layer.lora_A["default"].weight, layer.lora_B["default"].weight
    scaling = layer.scaling["default"]

    def check(autocast=False):
        weight = layer.base_layer.weight
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = vector.norm(weight, a, b, scaling)
        torch.testing.assert_close(found, (weight + scaling * b @ a).norm(dim=1), atol=1e-5, rtol=1e-5)
        return found

    first = check()
    with torch.no_grad():
        a.mul_(3)
    assert not torch.equal(check(), first)
    with torch.no_grad():
        layer.base_layer.weight.mul_(2)
    check()
    layer.base_layer.weight = torch.nn.Parameter(torch.randn_like(layer.base_layer.weight), requires_grad=False)
    check()
    check(autocast=True)


def test_a_vanishing_row_has_a_norm():
    """W + BA = 0: what is left of the three terms is rounding, and may be below zero."""
    weight, a = torch.randn(4, 6), torch.eye(6)
    norms = FactoredDora(fan_in_fan_out=False).norm(weight, a, -weight, 1.0)
    assert norms.isfinite().all() and norms.max() < 5e-3
