"""Test that what is known of the groups of a call decides on the same rounds as sampling them one after another."""

import random

import pytest
import torch

from rlvr_sweeps.training.continuous_sampling import Rounds
from rlvr_sweeps.training.dynamic_sampling import Group, fill, pools_of


@pytest.fixture
def rng(request):
    """Return a random number generator for each value of the parameter."""
    return random.Random(request.param)


def group(is_mixed):
    """Return a group of two completions."""
    return Group([{}], [], [], [], None, torch.tensor([[0.0], [float(is_mixed)]]))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("rng", range(40), indirect=True)
def test_groups_that_become_known_in_any_order_decide_on_the_rounds(rng, steps):
    size, most, share = rng.randint(1, 6), rng.randint(1, 6), rng.random()
    mixed = [rng.random() < share for _ in range(size * most * steps)]
    expected = steps
    while expected < most * steps and sum(mixed[: expected * size]) < size * steps:
        expected += 1
    rounds, unknown = Rounds(size, most, steps), list(range(size * most * steps))
    bounds = [rounds.bound]
    while not rounds.is_complete:
        news = rng.sample(unknown, rng.randint(1, len(unknown)))
        rounds.learn({index: mixed[index] for index in news})
        unknown = [index for index in unknown if index not in news]
        bounds.append(rounds.bound)
    assert rounds.bound == expected and rounds.needed == expected * size
    assert bounds == sorted(bounds, reverse=True) and min(bounds) == expected, "no group of the rounds is ever aborted"
    if steps == 1:
        stream = iter(map(group, mixed))
        assert fill(lambda count: [next(stream) for _ in range(count)], size, most).rounds == expected


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("rng", range(40), indirect=True)
def test_the_steps_of_a_call_share_its_groups_out_in_the_order_of_the_stream(rng, steps):
    size, rounds = rng.randint(1, 6), steps * rng.randint(1, 4)
    most, share = rng.choice([1, 4]), rng.random()
    sampled = [group(rng.random() < share) for _ in range(size * (steps if most == 1 else rounds))]
    pools = pools_of(sampled, rounds, size, most, steps)
    assert [id(each) for pool in pools for each in pool.sampled] == list(map(id, sampled))
    assert all(len(pool.trained) == size for pool in pools) and sum(pool.rounds for pool in pools) == rounds
    trained = [each for pool in pools for each in pool.trained]
    if most == 1:
        assert list(map(id, trained)) == list(map(id, sampled))
    elif sum(each.is_mixed for each in sampled) >= size * steps:
        assert all(each.is_mixed for each in trained)
