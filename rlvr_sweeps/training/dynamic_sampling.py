"""The choice of prompts of a step: a seeded stream of problems, and DAPO's dynamic sampling over it."""

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlvr_sweeps.files import Row
from rlvr_sweeps.runs.rollouts import share_column, without_middle

TEXT_LIMIT = 4000  # characters of a prompt or completion in rollouts.jsonl


class PromptStream:
    """Problems in a seeded order, another one in each epoch. `position` is the only state, so a resume is exact at any step."""

    def __init__(self, rows: Sequence[Row], seed: int) -> None:
        self.rows, self.seed, self.position = rows, seed, 0
        self._epoch, self._order = -1, list[int]()

    def take(self, count: int) -> list[tuple[int, Row]]:
        """Return the next `count` problems, each with its position in the stream, and advance."""
        positions = range(self.position, self.position + count)
        self.position += count
        return [(position, self.at(position)) for position in positions]

    def index(self, position: int) -> int:
        """Return the index into `rows` at a position of the stream."""
        epoch, offset = divmod(position, len(self.rows))
        if epoch != self._epoch:
            order = list(range(len(self.rows)))
            random.Random(f"prompts-{self.seed}-{epoch}").shuffle(order)
            self._epoch, self._order = epoch, order
        return self._order[offset]

    def at(self, position: int) -> Row:
        """Return the problem at a position of the stream, without advancing."""
        return self.rows[self.index(position)]


@dataclass
class Group:
    """G completions of one prompt with their rewards; every list has one entry per completion."""

    rows: list[Row]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    completions: list[Any]
    logprobs: list[Any] | None  # the sampler's, where it returns them
    rewards: Tensor  # (G, reward functions); the first column is the verifier's
    reasons: list[str] = field(default_factory=list)  # the verifier's, one per completion
    correct: list[bool] = field(default_factory=list)  # the verifier's, one per completion

    @property
    def is_mixed(self) -> bool:
        """Whether completions differ in the verifier's score, right and wrong ones for a score of 0 or 1: only then they have
        an advantage.
        """
        accuracy = self.rewards[:, 0]
        return bool(accuracy.max() > accuracy.min())

    def tokens(self) -> int:
        """Return the number of tokens of all prompts and completions."""
        return sum(map(len, self.prompt_ids)) + sum(map(len, self.completion_ids))


@dataclass
class Pool:
    """The groups that one optimizer step sampled, and those it trains on."""

    sampled: list[Group]
    rounds: float  # with rollout.lag=1 the mean of two steps
    trained: list[Group]
    discarded: dict[str, int] = field(default_factory=dict)  # columns of metrics.jsonl: what was decoded beyond the rounds

    def tokens_sampled(self) -> int:
        """Return the number of prompt and completion tokens of everything that was sampled."""
        return sum(group.tokens() for group in self.sampled)

    def tokens_trained(self) -> int:
        """Return the number of prompt and completion tokens of the groups that are trained on."""
        return sum(group.tokens() for group in self.trained)

    def metrics(self) -> dict[str, float]:
        """Return the sampling columns of metrics.jsonl; rewards are over everything sampled, so that objectives compare."""
        rewards = torch.cat([group.rewards[:, 0] for group in self.sampled])
        lengths = [len(ids) for group in self.sampled for ids in group.completion_ids] or [0]
        mixed = sum(group.is_mixed for group in self.sampled)
        reasons = Counter(reason for group in self.sampled for reason in group.reasons)
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
            **self.discarded,
            **{share_column(reason): count / reasons.total() for reason, count in sorted(reasons.items())},
        }

    def readable(self, count: int, seed: str, end_ids: Collection[int]) -> list[Row]:
        """Return at most `count` random completions as rows of rollouts.jsonl: half of them right, as far as both exist."""
        rows = [
            {
                "problem": group.rows[index]["problem"],
                "prompt": without_middle(group.rows[index]["prompt"][-1]["content"], TEXT_LIMIT),
                "gold": group.rows[index]["gold"], "text": without_middle(group.completions[index][0]["content"], TEXT_LIMIT),
                "reward": float(group.rewards[index].sum()), "correct": group.correct[index],
                "reason": group.reasons[index], "tokens": len(group.completion_ids[index]),
                "truncated": group.completion_ids[index][-1] not in end_ids,
                "trained": any(group is trained for trained in self.trained),
            }
            for group in self.sampled
            for index in range(len(group.rows))
        ]  # fmt: skip
        random.Random(seed).shuffle(rows)
        right, wrong = ([row for row in rows if row["correct"] == correct] for correct in (True, False))
        chosen = right[: max(count // 2, count - len(wrong))]
        return chosen + wrong[: count - len(chosen)]


def fill(roll: Callable[[int], list[Group]], groups: int, max_rounds: int) -> Pool:
    """Call `roll(groups)` until `groups` mixed groups exist, at most `max_rounds` times; 1 disables dynamic sampling.

    At the bound, groups without an advantage fill the batch; they add no gradient except for an overlong punishment, and the
    column `bound_hit` is 1. (DAPO, Yu et al. 2025, arXiv 2503.14476, Sec. 3.2.) `continuous_sampling` gives the same pools.
    """
    sampled: list[Group] = []
    rounds = 0
    while rounds < max_rounds and (rounds == 0 or sum(group.is_mixed for group in sampled) < groups):
        sampled += roll(groups)
        rounds += 1
    return pool_of(sampled, rounds, groups, max_rounds)


def pool_of(sampled: list[Group], rounds: float, groups: int, max_rounds: int) -> Pool:
    """Return what a step trains on: its first `groups` mixed groups, in the stream's order; without dynamic sampling, all."""
    if max_rounds == 1:
        return Pool(sampled, rounds, sampled)
    trained = [group for group in sampled if group.is_mixed] + [group for group in sampled if not group.is_mixed]
    return Pool(sampled, rounds, trained[:groups])


def pools_of(sampled: list[Group], rounds: int, groups: int, max_rounds: int, steps: int) -> list[Pool]:
    """Return what each of `steps` steps trains on, where their groups were sampled together in `rounds` rounds.

    In the stream's order: each step takes groups up to the last mixed one that it needs, and leaves at least `groups` for each
    later step; the last step takes all that are left.
    """
    pools, rounds_per_step = list[Pool](), rounds if steps == 1 else rounds / steps
    for later in reversed(range(steps)):
        mixed = [index for index, group in enumerate(sampled) if group.is_mixed or max_rounds == 1]
        most = len(sampled) - later * groups
        end = most if not later or len(mixed) < groups else min(most, mixed[groups - 1] + 1)
        pools.append(pool_of(sampled[:end], rounds_per_step, groups, max_rounds))
        sampled = sampled[end:]
    return pools


def overlong_punishment(max_tokens: int, buffer: int) -> Callable[..., list[float]]:
    """Return DAPO's soft overlong punishment (Eq. 13): 0 up to max − buffer tokens, then linearly down to −1 at max."""

    def overlong(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [min(0.0, (max_tokens - buffer - len(ids)) / buffer) for ids in completion_ids]

    return overlong
