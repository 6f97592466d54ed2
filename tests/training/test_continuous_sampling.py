"""Test that what is known of a step's groups decides on the same rounds as sampling them one after another."""

import random

import pytest
import torch

from rlvr_sweeps.training.continuous_sampling import Rounds
from rlvr_sweeps.training.dynamic_sampling import Group, fill


@pytest.mark.parametrize("seed", range(40))
def test_groups_that_become_known_in_any_order_decide_on_the_rounds(seed):
    rng = random.Random(seed)
    size, most, share = rng.randint(1, 6), rng.randint(1, 6), rng.random()
    mixed = [rng.random() < share for _ in range(size * most)]
    stream = iter(Group([{}], [], [], [], None, torch.tensor([[0.0], [float(each)]])) for each in mixed)
    pool = fill(lambda count: [next(stream) for _ in range(count)], size, most)
    rounds, unknown, bounds = Rounds(size, most), list(range(size * most)), [most]
    while not rounds.is_complete:
        news = rng.sample(unknown, rng.randint(1, len(unknown)))
        rounds.learn({index: mixed[index] for index in news})
        unknown = [index for index in unknown if index not in news]
        bounds.append(rounds.bound)
    assert rounds.bound == pool.rounds and rounds.needed == len(pool.sampled)
    assert bounds == sorted(bounds, reverse=True) and min(bounds) == pool.rounds, "no group of the rounds is ever aborted"
