"""Test attached methods: trained parameters, outputs at step 0, and the check of the built method against the configuration."""

import copy
import json
import re

import pytest
import torch

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.training import build_check
from rlvr_sweeps.training.methods.adapters import attach
from rlvr_sweeps.training.methods.merging import tuner_layers
from rlvr_sweeps.training.methods.svd import cached_triplets, triplets
from tests.conftest import PROMPTS, ROOT, choices
from tests.training.test_merging import method

METHODS = [name for name in choices("peft") if name != "none"]
GOLDEN = json.loads((ROOT / "tests/training/golden_trainable.json").read_text())
IDS = torch.arange(60).view(3, 20)


@pytest.mark.parametrize("name", METHODS)
def test_at_step_0_the_policy_is_the_base(model, composer, name):
    base = model(IDS).logits
    torch.testing.assert_close(
        attach(model, method(composer, name), seed=1, prompts=PROMPTS).eval()(IDS).logits, base, atol=2e-4, rtol=2e-4
    )


@pytest.mark.parametrize("name", METHODS)
def test_exactly_the_declared_kinds_of_parameters_are_trained_in_every_module(model, composer, name):
    settings = method(composer, name)
    adapted = attach(model, settings, seed=1, prompts=PROMPTS)
    named = adapted.named_parameters(remove_duplicate=False)  # layers of TinyLoRA share parameters
    trainable = [key for key, parameter in named if parameter.requires_grad]
    if name == "full":
        assert len(trainable) == len(list(model.parameters()))
        return
    targets = settings["config"]["target_modules"]
    for kind in settings["trained"]:
        of_kind = {key.split(f".{kind}")[0].rpartition(".")[2] for key in trainable if f".{kind}" in key} - {"base_model"}
        assert of_kind == set(targets), kind
    assert all(any(f".{kind}" in key for kind in settings["trained"]) for key in trainable)


def test_no_two_methods_are_equal(model, composer):
    """Two methods whose models have equal outputs after an equal change, and equal optimizers, would be one method."""
    built = {}
    for name in METHODS:
        settings = method(composer, name)
        adapted = attach(copy.deepcopy(model), settings, seed=1, prompts=PROMPTS)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01)
        built[name] = (round(float(adapted.eval()(IDS).logits.detach().double().sum()), 6), settings["lr_ratio"])
    assert len(set(built.values())) == len(built), built


def test_milora_trains_the_smallest_singular_directions(model, composer):
    weight = copy.deepcopy(model.model.layers[1].mlp.down_proj.weight.detach())
    adapted = attach(model, method(composer, "milora"), seed=1, prompts=PROMPTS)
    layer = adapted.base_model.model.model.layers[1].mlp.down_proj
    trained = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer.get_base_layer().weight + trained, weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.linalg.svdvals(trained)[:8], torch.linalg.svdvals(weight)[-8:], atol=1e-5, rtol=1e-3)


def test_lora_ga_starts_from_the_singular_vectors_of_the_gradient(model, composer):
    """Compare with an exact SVD of the gradient of the next-token loss: A from the first r triplets, B from the next r."""
    base, rank = copy.deepcopy(model), 8
    for first in range(0, len(PROMPTS), 8):
        ids = torch.tensor(PROMPTS[first : first + 8])
        base(ids, labels=ids).loss.backward()
    adapted = attach(model, method(composer, "lora_ga"), seed=1, prompts=PROMPTS)
    name = "model.layers.1.mlp.up_proj"
    layer, plain = adapted.base_model.model.get_submodule(name), base.get_submodule(name)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    scale = plain.out_features**0.25 / 4
    torch.testing.assert_close(a @ a.T, scale**2 * torch.eye(rank), atol=1e-4, rtol=1e-4)
    left, _, right = torch.linalg.svd(plain.weight.grad)
    for factor, exact in ((a.T, right[:rank].T), (b, left[:, rank : 2 * rank])):
        torch.testing.assert_close(factor @ factor.T / scale**2, exact @ exact.T, atol=2e-2, rtol=0)
    torch.testing.assert_close(
        layer.get_base_layer().weight + layer.scaling["default"] * b @ a, plain.weight, atol=1e-5, rtol=0
    )
    stored = {key: value.clone() for key, value in adapted.named_parameters() if value.requires_grad}
    base.zero_grad()
    resumed = attach(base, method(composer, "lora_ga"), seed=9, start=stored)
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in adapted.state_dict().items())


def test_targets_that_match_nothing_are_refused(model, composer):
    settings = method(composer, "lora")
    with pytest.raises(Refused, match="matches no layer"):
        attach(
            model, settings | {"config": settings["config"] | {"target_modules": ["no_such_layer"]}}, seed=1, prompts=PROMPTS
        )


def test_a_built_method_that_differs_from_the_configured_one_is_refused():
    configured = {"adapter": "LORA", "scaling": 2.0, "trained": ["lora_A", "lora_B"]}
    build_check.refuse_differences(configured, dict(configured))
    with pytest.raises(Refused, match=r"scaling: configured 2\.0, built 1\.0"):
        build_check.refuse_differences(configured, configured | {"scaling": 1.0})
    with pytest.raises(Refused, match="built None"):
        build_check.refuse_differences(configured, {"adapter": "LORA", "scaling": 2.0})


@pytest.mark.parametrize("name", METHODS)
def test_trained_names_and_sizes_equal_the_golden_ones(model, composer, name):
    """Compare the numbers of tensors and scalars by name without layer numbers; a PEFT release may change them."""
    counts: dict[str, list[int]] = {}
    for key, parameter in attach(model, method(composer, name), seed=1, prompts=PROMPTS).named_parameters():
        if parameter.requires_grad:
            entry = counts.setdefault(re.sub(r"\b\d+\b", "N", key), [0, 0])
            entry[0] += 1
            entry[1] += parameter.numel()
    if name == "eva":  # distributes ranks by the data; some modules get none
        assert counts.keys() <= GOLDEN[name].keys()
    else:
        assert counts == GOLDEN[name]


def test_principal_triplets_equal_pefts_pissa(model, composer):
    policy = attach(copy.deepcopy(model), method(composer, "pissa"), seed=1)
    settings = method(composer, "lora")
    settings["config"]["init_lora_weights"] = "pissa"
    pefts_policy = attach(model, settings, seed=1)
    for (name, layer), expected in zip(tuner_layers(policy).items(), tuner_layers(pefts_policy).values(), strict=True):
        torch.testing.assert_close(
            layer.get_base_layer().weight, expected.get_base_layer().weight, atol=2e-4, rtol=1e-3, msg=name
        )
        torch.testing.assert_close(
            layer.get_delta_weight("default"), expected.get_delta_weight("default"), atol=2e-4, rtol=1e-3
        )


def test_one_svd_per_layer_is_computed_for_both_sides_and_all_ranks(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    weights = {"tall": torch.randn(160, 96), "wide": torch.randn(96, 160)}
    computed = []
    monkeypatch.setattr(
        "rlvr_sweeps.training.methods.svd.triplets", lambda weight, count: computed.append(count) or triplets(weight, count)
    )
    for rank in (5, 64, 1):
        for side, part in (("principal", slice(None, rank)), ("minor", slice(-rank, None))):
            cached = cached_triplets(weights, rank, side, "some-model")
            for name, weight in weights.items():
                assert all(map(torch.equal, cached[name], triplets(weight, rank)[side]))
                u, s, vh = torch.linalg.svd(weight, full_matrices=False)
                expected = u[:, part] @ torch.diag(s[part]) @ vh[part]
                torch.testing.assert_close(
                    cached[name].u @ torch.diag(cached[name].s) @ cached[name].vh, expected, atol=1e-4, rtol=1e-4
                )
    assert computed == [64, 64]
    cached_triplets(weights, 65, "minor", "some-model")
    cached_triplets(weights, 70, "principal", "some-model")
    assert computed == [64, 64, 96, 96]


def test_an_interrupted_svd_keeps_the_layers_that_are_complete(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    weights = {name: torch.randn(8, 6) for name in ("first", "second")}
    computed = []

    def interrupted_after_one(weight, count):
        if computed:
            raise KeyboardInterrupt
        computed.append(weight)
        return triplets(weight, count)

    monkeypatch.setattr("rlvr_sweeps.training.methods.svd.triplets", interrupted_after_one)
    with pytest.raises(KeyboardInterrupt):
        cached_triplets(weights, 2, "principal", "some-model")
    monkeypatch.setattr(
        "rlvr_sweeps.training.methods.svd.triplets", lambda weight, count: computed.append(weight) or triplets(weight, count)
    )
    cached_triplets(weights, 2, "principal", "some-model")
    assert [id(weight) for weight in computed] == [id(weight) for weight in weights.values()]
