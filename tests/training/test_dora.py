"""Test DoRA's factored norm against PEFT's DoRA: values, gradients, and norms after changes of the weights."""

import copy

import pytest
import torch

from rlvr_sweeps.training.methods.adapters import attach
from rlvr_sweeps.training.methods.dora import FactoredDora
from tests.training.test_merging import method

IDS = torch.arange(60).view(3, 20)


def both_policies(model, composer, dropout=0.0):
    """Return PEFT's policy and the factored one, with equal weights, all of which differ from their initial values."""
    policies = []
    for factored in (False, True):
        settings = method(composer, "dora") | {"factored_norm": factored}
        settings["config"]["lora_dropout"] = dropout
        policy = attach(copy.deepcopy(model), settings, seed=3)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        policies.append(policy.train())
    assert sum(isinstance(layer, FactoredDora) for layer in policies[1].modules()) == 3 * 7
    assert not any(isinstance(layer, FactoredDora) for layer in policies[0].modules())
    return policies


def logits_and_gradients(policy):
    """Return the logits and the gradients of the trained parameters, by name."""
    torch.manual_seed(4)  # the same dropout
    policy.zero_grad()
    logits = policy(IDS).logits
    logits.log_softmax(-1)[..., 0].sum().backward()
    return logits.detach(), {name: value.grad for name, value in policy.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_equal_pefts(model, composer, dropout, training):
    plain, factored = (logits_and_gradients(policy.train(training)) for policy in both_policies(model, composer, dropout))
    torch.testing.assert_close(factored[0], plain[0], atol=1e-5, rtol=1e-5)
    assert plain[1].keys() == factored[1].keys() and len(plain[1]) == 3 * 3 * 7
    for name, gradient in plain[1].items():
        torch.testing.assert_close(factored[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_norms_follow_changes_of_adapter_and_base(model, composer):
    _, policy = both_policies(model, composer)
    layer = policy.base_model.model.model.layers[1].mlp.down_proj
    vector, a, b = layer.lora_magnitude_vector["default"], layer.lora_A["default"].weight, layer.lora_B["default"].weight
    scaling = layer.scaling["default"]

    def check(autocast=False):
        weight = layer.base_layer.weight
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            norms = vector.norm(weight, a, b, scaling)
        torch.testing.assert_close(norms, (weight + scaling * b @ a).norm(dim=1), atol=1e-5, rtol=1e-5)
        return norms

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


def test_the_norm_of_a_zero_row_is_finite():
    """W + BA = 0: the sum of the three terms is a rounding error, which may be negative."""
    weight, a = torch.randn(4, 6), torch.eye(6)
    norms = FactoredDora(fan_in_fan_out=False).norm(weight, a, -weight, 1.0)
    assert norms.isfinite().all() and norms.max() < 5e-3
