"""Which prompts a step is trained on: a seeded stream of problems, and DAPO's dynamic sampling over it."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Any]


class PromptStream:
    """Problems in a seeded order, each epoch in another; its position is all of its state, so resuming is exact anywhere."""

    def __init__(self, rows: Sequence[Row], seed: int) -> None:
        self.rows, self.seed, self.position = rows, seed, 0
        self._epoch, self._order = -1, list[int]()

    def take(self, count: int) -> list[tuple[int, Row]]:
        """The next `count` problems, each with its place in the stream."""
        return [(place, self.rows[self.index(place)]) for place in self.advance(count)]

    def advance(self, count: int) -> Iterator[int]:
        for _ in range(count):
            yield self.position
            self.position += 1

    def index(self, place: int) -> int:
        epoch, offset = divmod(place, len(self.rows))
        if epoch != self._epoch:
            order = list(range(len(self.rows)))
            random.Random(f"prompts-{self.seed}-{epoch}").shuffle(order)
            self._epoch, self._order = epoch, order
        return self._order[offset]


@dataclass
class Group:
    """G completions of one prompt: what TRL's generation and reward calls returned for them."""

    rows: list[Row]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    completions: list[Any]
    logprobs: list[Any] | None
    rewards: Tensor  # (G, reward functions); the first column is the verifier's

    @property
    def is_mixed(self) -> bool:
        """Some completions right and some wrong: the only kind of group with an advantage."""
        accuracy = self.rewards[:, 0]
        return bool(accuracy.max() > accuracy.min())

    def tokens(self) -> int:
        """Return the number of tokens of all prompts and completions."""
        return sum(map(len, self.prompt_ids)) + sum(map(len, self.completion_ids))


@dataclass
class Pool:
    """What one optimizer step sampled, and the groups it trains on."""

    sampled: list[Group]
    rounds: int
    trained: list[Group]

    def tokens_sampled(self) -> int:
        """Return the number of prompt and completion tokens of everything that was sampled."""
        return sum(group.tokens() for group in self.sampled)

    def tokens_trained(self) -> int:
        """Return the number of prompt and completion tokens of the groups that are trained on."""
        return sum(group.tokens() for group in self.trained)

    def metrics(self) -> dict[str, float]:
        """metrics.jsonl's columns about sampling. Rewards are over everything sampled, so that objectives compare."""
        rewards = torch.cat([group.rewards[:, 0] for group in self.sampled])
        lengths = [len(ids) for group in self.sampled for ids in group.completion_ids] or [0]
        mixed = sum(group.is_mixed for group in self.sampled)
        return {
            "completion_tokens_mean": sum(lengths) / len(lengths),
            "completion_tokens_max": max(lengths),
            "reward_mean": float(rewards.mean()),
            "reward_std": float(rewards.std()),
            "zero_std_share": 1 - mixed / len(self.sampled),
            "trained_zero_std_share": 1 - sum(group.is_mixed for group in self.trained) / len(self.trained),
            "sampling_rounds": self.rounds,
            "sampled_groups": len(self.sampled),
            "bound_hit": float(mixed < len(self.trained) and self.rounds > 1),
        }


def fill(roll: Callable[[int], list[Group]], groups: int, max_rounds: int) -> Pool:
    """Sample until `groups` mixed ones are there, at most `max_rounds` calls of `roll(groups)`; 1: no dynamic sampling.

    Where the bound is hit, groups without an advantage fill the batch: they add no gradient (but for an overlong
    punishment), and `bound_hit` says so.
    (DAPO, Yu et al. 2025, arXiv 2503.14476, Sec. 3.2.)
    """
    sampled: list[Group] = []
    rounds = 0
    while rounds < max_rounds and (rounds == 0 or sum(group.is_mixed for group in sampled) < groups):
        sampled += roll(groups)
        rounds += 1
    if max_rounds == 1:
        return Pool(sampled, rounds, sampled)
    trained = [group for group in sampled if group.is_mixed] + [group for group in sampled if not group.is_mixed]
    return Pool(sampled, rounds, trained[:groups])


def overlong_punishment(max_tokens: int, buffer: int) -> Callable[..., list[float]]:
    """DAPO's soft overlong punishment (Eq. 13): 0 up to max − buffer tokens, then linearly down to −1 at max."""

    def overlong(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [min(0.0, (max_tokens - buffer - len(ids)) / buffer) for ids in completion_ids]

    return overlong
