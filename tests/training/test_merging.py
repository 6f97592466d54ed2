"""Test that merged weights are the policy and that merging does not change the base."""

import copy

import pytest
import torch

from rlvr_sweeps.training.methods.adapters import attach
from rlvr_sweeps.training.methods.merging import merged, plain_name, policy_weights, tuner_layers
from tests.conftest import PROMPTS, choices, methods

METHODS = [name for name in choices("peft") if name not in ("none", "full")]


def adapted(model, composer, name, dtype=torch.float32):
    """Return the model with the method applied and its trained parameters changed, so that no adapter is the identity."""
    policy = attach(model.to(dtype), method(composer, name), seed=3, prompts=PROMPTS)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return policy.eval()


def method(composer, name):
    """Return the settings of a method from conf/peft, resolved."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(composer.compose([f"peft={name}"]), resolve=True)["peft"]


@pytest.mark.parametrize("name", METHODS)
def test_merged_weights_are_the_policy(model, composer, name):
    plain = copy.deepcopy(model)
    names = [key for key, _ in plain.named_parameters()]
    policy = adapted(model, composer, name)
    weights = dict(policy_weights(policy))
    assert sorted(weights) == sorted(names)
    ids = torch.arange(40).view(2, 20)
    before = plain(ids).logits
    plain.load_state_dict(weights)
    expected = policy(ids).logits
    assert (expected - before).abs().max() > 1e-3, "the adapter changes the logits"
    torch.testing.assert_close(plain(ids).logits, expected, atol=1e-4, rtol=1e-4)
    with merged(policy):
        torch.testing.assert_close(policy(ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(policy(ids).logits, expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", methods("full"))
def test_the_base_is_bit_identical_after_50_syncs(model, composer, name, dtype):
    policy = adapted(model, composer, name, dtype)
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    first = {key: value.clone() for key, value in policy_weights(policy)}
    for _ in range(25):
        with merged(policy):
            pass
        last = dict(policy_weights(policy))
    assert all(torch.equal(value, last[key]) for key, value in first.items())
    after = policy.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("name", ["dora", "hira", "peanut", "deft"])
def test_a_merge_leaves_no_tensor_in_memory(model, composer, name):
    """PEFT keeps the weights before a merge (HiRA), a factor of them (DEFT) or norms (DoRA) until its own unmerge."""
    policy = adapted(model, composer, name)

    def tensors():
        kept = [value for module in policy.modules() for value in vars(module).values()]
        caches = [value for cache in kept if isinstance(cache, dict) for value in cache.values()]
        return sum(isinstance(value, torch.Tensor) for value in kept + caches)

    before = tensors()
    for _ in policy_weights(policy):
        pass
    with merged(policy):
        pass
    assert tensors() == before


def test_an_error_while_merged_restores_the_model(model, composer):
    policy = adapted(model, composer, "dora")
    ids = torch.arange(10).view(1, 10)
    before = policy(ids).logits
    with pytest.raises(KeyboardInterrupt), merged(policy):
        raise KeyboardInterrupt
    assert torch.equal(policy(ids).logits, before)


def test_weights_are_merged_in_float32_and_cast_once(model, composer):
    policy = adapted(model, composer, "lora", torch.bfloat16)
    weights = dict(policy_weights(policy))
    for name, layer in tuner_layers(policy).items():
        a, b = layer.lora_A["default"].weight.float(), layer.lora_B["default"].weight.float()
        expected = layer.get_base_layer().weight.float() + layer.scaling["default"] * (b @ a)
        assert torch.equal(weights[plain_name(f"{name}.weight")], expected.to(torch.bfloat16)), name


@pytest.mark.parametrize("name", methods("full"))
def test_autocast_does_not_change_a_merge(model, composer, name):
    policy = adapted(model, composer, name)
    alone = {key: value.clone() for key, value in policy_weights(policy)}
    with torch.autocast("cpu", torch.bfloat16):
        inside = dict(policy_weights(policy))
    assert all(torch.equal(value, inside[key]) for key, value in alone.items())
