"""Test the roundings of the sampler's weights: an exact mean at random, a dead zone to the nearest, for every policy tensor."""

import copy

import numpy as np
import pytest
import torch

from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.training import train as train_stage
from rlvr_sweeps.training.methods.merging import merged, policy_weights
from rlvr_sweeps.training.methods.reach import reach, update_kept
from rlvr_sweeps.training.weight_rounding import rounding_of, stochastically_rounded
from tests.training.test_merging import adapted
from tests.training.test_reach import base as base
from tests.training.test_reach import moved


def neighbours(values):
    """Return the largest bfloat16 numbers ≤ and the smallest ≥ of float32 values, by their bits."""
    bits = values.view(np.uint32)
    toward_zero = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    away = np.where(bits & np.uint32(0xFFFF), (bits & np.uint32(0xFFFF0000)) + np.uint32(0x10000), bits).astype(np.uint32)
    return np.minimum(toward_zero, away.view(np.float32)), np.maximum(toward_zero, away.view(np.float32))


def test_random_rounding_gives_a_neighbour_and_in_the_mean_the_value_itself():
    exact = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 2000)
    low, high = neighbours(exact.numpy())
    draws = torch.stack([stochastically_rounded(exact, seed) for seed in range(500)]).double().numpy()
    assert np.all((draws == low) | (draws == high))
    share = (exact.numpy().astype(float) - low) / (high.astype(float) - low)  # the probability of the upper one
    error = np.sqrt(share * (1 - share) / len(draws)) * (high.astype(float) - low)
    z = (draws.mean(0) - exact.numpy()) / error
    assert abs(z.mean()) < 4 / np.sqrt(len(z)) and 0.9 < z.std() < 1.1


def test_values_that_bfloat16_has_stay_and_seed_and_name_decide_on_the_others():
    exact = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 1.0, -3.140625, 1e-40])
    for values in (exact.bfloat16().float(), special.bfloat16().float()):
        assert torch.equal(stochastically_rounded(values, 1), values)
    half = exact.bfloat16()
    assert torch.equal(stochastically_rounded(half, 1), half)
    round_one, round_same, round_other = (rounding_of("stochastic", seed, "weights", 3) for seed in (1, 1, 2))
    assert torch.equal(round_one("a", exact), round_same("a", exact))
    assert not torch.equal(round_one("a", exact), round_one("b", exact))
    assert not torch.equal(round_one("a", exact), round_other("a", exact))
    assert torch.equal(rounding_of("bfloat16")("a", exact), exact.bfloat16().float()) and rounding_of("float32") is None


@pytest.mark.parametrize("relative", [3e-4, 1e-3, 1e-2])
def test_random_rounding_keeps_an_update_of_any_size_and_the_nearest_value_does_not(base, relative):
    model, published = base
    policy = moved(model, relative)
    kept = {
        weights: reach(policy, published, rounding_of(weights, 0)).kept for weights in ("bfloat16", "stochastic", "float32")
    }
    assert kept["float32"]["q_proj"] == pytest.approx(1) and 0.8 < kept["stochastic"]["q_proj"] < 1.2
    assert kept["bfloat16"]["q_proj"] < 0.35 if relative < 5e-4 else kept["bfloat16"]["q_proj"] < 0.7 or relative > 5e-3
    triples = [(name, weight, rounding_of("stochastic", 0)(name, weight)) for name, weight in policy_weights(policy)]
    assert update_kept(triples, published) == pytest.approx(kept["stochastic"]["all"])
    assert update_kept([(name, weight, weight) for name, weight in policy_weights(model)], published) is None


@pytest.mark.parametrize("name", ["full", "lora", "dora", "ln_tuning"])
def test_the_sampling_model_has_every_weight_of_the_policy_rounded_and_no_bit_changes(model, composer, name):
    policy = model if name == "full" else adapted(model, composer, name)
    rounding = rounding_of("stochastic", 7)
    rounded = {key: rounding(key, value) for key, value in policy_weights(policy)}
    plain = copy.deepcopy(model) if name == "full" else type(model)(model.config)
    plain.load_state_dict({key: value.float() for key, value in rounded.items()}, strict=False)
    plain.tie_weights()
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    ids = torch.arange(12)[None]
    policy.eval()
    with torch.no_grad():
        exact = policy(input_ids=ids).logits
        with merged(policy, rounding):
            sampled = policy(input_ids=ids).logits
        assert torch.allclose(sampled, plain.eval()(input_ids=ids).logits, atol=1e-5)
        assert not torch.allclose(sampled, exact, atol=1e-5)
        assert torch.equal(policy(input_ids=ids).logits, exact)
    assert all(torch.equal(value, policy.state_dict()[key]) for key, value in before.items())


@pytest.mark.slow
def test_a_training_measures_and_warns_of_an_update_that_its_sampler_lacks(shortest, capsys):
    """Full fine-tuning at a rate whose update is smaller than the steps of bfloat16; the base has bfloat16 values."""
    kept = {}
    for weights in ("bfloat16", "stochastic"):
        overrides = ("peft=full", "lr=1e-6", "analysis=none", "model.rounded_to_bf16=true", f"rollout.weights={weights}")
        run, cfg = shortest(*overrides, runs=weights)
        train_stage.train(run, cfg)
        rows = read_rows(run.reach_path)
        kept[weights] = rows[-1]["update_kept"]["all"]
        assert all(0 < row["reach"]["all"] < 1e-3 and row["bfloat16_error"]["all"] > 0.5 for row in rows)
        warned = "rollout.weights=bfloat16 keeps" in capsys.readouterr().out
        events = [row["event"] for row in read_rows(run.attempts_path)]
        assert warned == (weights == "bfloat16") == ("update_lost" in events)
    assert kept["bfloat16"] < 0.5 and 0.8 < kept["stochastic"] < 1.2
    assert read_json(run.record_path)["model_key"].endswith("-bf16")
