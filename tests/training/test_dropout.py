"""Dropout from uniform numbers is nn.Dropout: its rate, its scale, its gradient, and nothing outside of training."""

import math

import pytest
import torch
from torch import nn

from rlvr_sweeps.training.methods.adapters import Dropout, attach, use_faster_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.05, 0.5])
def test_rate_and_scale_are_what_was_asked(p, dtype):
    torch.manual_seed(0)
    count = 1_000_000
    found = Dropout(p)(torch.ones(1000, 1000, dtype=dtype))
    dropped = float((found == 0).double().mean())
    assert abs(dropped - p) < 4 * math.sqrt(p * (1 - p) / count)
    assert found.unique().tolist() == [0.0, float(torch.tensor(1 / (1 - p), dtype=dtype))]
    rows = (found == 0).double().mean(1)  # independent draws: their rates scatter as a binomial's
    assert float(rows.std()) == pytest.approx(math.sqrt(p * (1 - p) / 1000), rel=0.1)


def test_the_gradient_passes_where_the_input_does():
    torch.manual_seed(0)
    x = torch.randn(64, 32, dtype=torch.double, requires_grad=True)
    out = Dropout(0.3)(x)
    out.sum().backward()
    torch.testing.assert_close(out.detach(), x.detach() * x.grad)


def test_a_seed_decides_all_of_it_and_evaluation_none():
    layer, x = Dropout(0.3), torch.randn(5, 7)
    torch.manual_seed(1)
    first = layer(x)
    state = torch.get_rng_state()
    second = layer(x)
    torch.set_rng_state(state)
    assert torch.equal(layer(x), second) and not torch.equal(first, second)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x) and not Dropout(1.0)(x).any()


def test_adapters_have_it_and_other_modules_stay(composer, model):
    adapted = attach(model, composer.point(["peft=dora", "dropout=0.1"]).cfg["peft"], seed=1)
    found = [module for module in adapted.modules() if isinstance(module, nn.Dropout)]
    assert len(found) == 21 and all(type(module) is Dropout and module.p == 0.1 for module in found)
    other = nn.Sequential(nn.Dropout1d(0.5), nn.AlphaDropout(0.5))
    use_faster_dropout(other)
    assert [type(module) for module in other] == [nn.Dropout1d, nn.AlphaDropout]
