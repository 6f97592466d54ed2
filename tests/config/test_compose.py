"""The fast composer gives what Hydra's own composing gives."""

import pytest
from omegaconf import OmegaConf

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
def test_same_as_hydra(composer, overrides):
    from hydra import compose

    wanted = compose("config", overrides)
    for _ in range(2):  # the second time from what it kept
        found = composer.compose(overrides)
        assert OmegaConf.to_container(found, resolve=False) == OmegaConf.to_container(wanted, resolve=False)


def test_points_do_not_leak_into_each_other(composer):
    assert composer.compose(["rank=3"]).rank == 3
    assert composer.compose([]).rank == 8
