"""Test the relative size of an update, and the part of it that bfloat16 loses, against their definitions."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rlvr_sweeps.training.methods.reach import reach
from rlvr_sweeps.training.models import PublishedWeights


@pytest.fixture
def base(model, tmp_path):
    """Return a model whose weights have bfloat16 values, as published ones, and its published weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    save_file({name: value.detach().clone() for name, value in model.named_parameters()}, tmp_path / "model.safetensors")
    return model, PublishedWeights(tmp_path)


def moved(model, relative):
    """Return a copy of a model whose q_proj weights moved by random numbers of a relative size."""
    policy, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name.endswith("q_proj.weight"):
                parameter.add_(relative * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return policy


def test_a_small_update_is_lost_in_bfloat16_and_a_large_one_is_not(base):
    model, published = base
    errors = {}
    for relative in (1e-4, 1e-3, 1e-2, 1e-1):
        size, lost, _ = reach(moved(model, relative), published)
        assert 0.9 * relative < size["q_proj"] < 1.1 * relative and size["k_proj"] == 0
        assert sorted(lost) == ["all", "q_proj"]
        errors[relative] = lost["q_proj"]
    assert errors[1e-4] > 0.9 and 0.5 < errors[1e-3] < 1.1 and errors[1e-2] < 0.3 and errors[1e-1] < 0.03


def test_both_quotients_equal_their_definitions(base):
    model, published = base
    policy = moved(model, 1e-3)
    size, lost, _ = reach(policy, published)
    pairs = [
        (weight.detach().double().numpy(), published[name].double().numpy(), weight.detach().bfloat16().double().numpy())
        for name, weight in policy.named_parameters()
        if name.endswith(("q_proj.weight", "q_proj.bias"))
    ]
    norms = [
        np.sqrt(sum(np.square(difference).sum() for difference in differences))
        for differences in (
            [present - origin for present, origin, _ in pairs],
            [origin for _, origin, _ in pairs],
            [rounded - present for present, _, rounded in pairs],
        )
    ]
    assert size["q_proj"] == pytest.approx(norms[0] / norms[1], rel=1e-6)
    assert lost["q_proj"] == pytest.approx(norms[2] / norms[0], rel=1e-6)
    assert reach(model, published)[1] == {} and set(reach(model, published)[0].values()) == {0.0}
