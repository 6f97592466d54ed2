"""Test that Composer returns the same configurations as hydra.compose."""

import pytest
from omegaconf import OmegaConf, base

POINTS = [
    [],
    ["peft=dora", "rank=16", "lr=1e-4"],
    ["model=r1_qwen_7b", "algo=grpo", "alpha=3"],
    ["benchmark=[aime24,tiny]", "evaluation.max_tokens=8"],
    ["~benchmark.tier3", "training.trl.weight_decay=0.1"],
    ["+algo.trl.delta=2", "peft=lora", "rank=1"],
    ["peft=lora", "hydra.launcher.workers=1", "seed=3"],
]


@pytest.mark.parametrize("overrides", POINTS)
def test_composer_equals_hydra(composer, overrides):
    from hydra import compose

    expected = compose("config", overrides)
    for _ in range(2):  # the second time from the cache
        cfg = composer.compose(overrides)
        assert OmegaConf.to_container(cfg, resolve=False) == OmegaConf.to_container(expected, resolve=False)


def test_a_point_does_not_change_the_cached_configuration(composer):
    assert composer.compose(["rank=3"]).rank == 3
    assert composer.compose([]).rank == 8


def test_an_interpolation_is_parsed_once(composer):
    """OmegaConf would parse every interpolation again for each point: patches.reuse_interpolation_trees."""
    composer.point(["peft=lora", "lr=1e-3"])
    parsed = base.parse.cache_info().misses
    assert composer.point(["peft=lora", "lr=2e-3"]).cfg["lr"] == 2e-3
    assert base.parse.cache_info().misses == parsed
