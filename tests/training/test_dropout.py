"""Test that dropout from uniform numbers has the rate, scale and gradient of nn.Dropout, and no effect in evaluation."""

import math

import pytest
import torch
from torch import nn

from rlvr_sweeps.training.methods.adapters import Dropout, attach, use_faster_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.05, 0.5])
def test_rate_and_scale_follow_from_p(p, dtype):
    torch.manual_seed(0)
    count = 1_000_000
    output = Dropout(p)(torch.ones(1000, 1000, dtype=dtype))
    dropped = float((output == 0).double().mean())
    assert abs(dropped - p) < 4 * math.sqrt(p * (1 - p) / count)
    assert output.unique().tolist() == [0.0, float(torch.tensor(1 / (1 - p), dtype=dtype))]
    rates = (output == 0).double().mean(1)  # rates of rows: their spread is that of independent draws
    assert float(rates.std()) == pytest.approx(math.sqrt(p * (1 - p) / 1000), rel=0.1)


def test_the_gradient_is_dropped_and_scaled_like_the_input():
    torch.manual_seed(0)
    x = torch.randn(64, 32, dtype=torch.double, requires_grad=True)
    out = Dropout(0.3)(x)
    out.sum().backward()
    torch.testing.assert_close(out.detach(), x.detach() * x.grad)


def test_dropout_follows_from_the_seed_and_is_off_in_evaluation():
    layer, x = Dropout(0.3), torch.randn(5, 7)
    torch.manual_seed(1)
    first = layer(x)
    state = torch.get_rng_state()
    second = layer(x)
    torch.set_rng_state(state)
    assert torch.equal(layer(x), second) and not torch.equal(first, second)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x) and not Dropout(1.0)(x).any()


def test_adapters_use_this_dropout_and_other_kinds_of_dropout_are_unchanged(composer, model):
    adapted = attach(model, composer.point(["peft=dora", "dropout=0.1"]).cfg["peft"], seed=1)
    layers = [module for module in adapted.modules() if isinstance(module, nn.Dropout)]
    assert len(layers) == 21 and all(type(module) is Dropout and module.p == 0.1 for module in layers)
    other_kinds = nn.Sequential(nn.Dropout1d(0.5), nn.AlphaDropout(0.5))
    use_faster_dropout(other_kinds)
    assert [type(module) for module in other_kinds] == [nn.Dropout1d, nn.AlphaDropout]
