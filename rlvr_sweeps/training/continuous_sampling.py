"""Dynamic sampling in one call of the engine: prompts of the stream enter as slots free up, and what no round needs is aborted.

Rounds (`dynamic_sampling.fill`) wait for the longest completion of each round before the next one begins. Here the next prompts
begin while the longest ones are still decoded. A completion depends on its seed alone, so that the result is the one of the
rounds: the groups of all rounds that `fill` would have sampled, and none beyond them. Only completions beyond the last of these
rounds are aborted; they are counted and used for nothing.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from rlvr_sweeps.files import Row
from rlvr_sweeps.training.dynamic_sampling import Group

EXCHANGES = 128  # of the processes, which also read the stop file, while a completion of full length is decoded
DISCARDED = ("discarded_completions", "discarded_tokens")  # columns of metrics.jsonl: of groups beyond the last round
Completion = tuple[list[int], list[float]]  # token ids with the end token, and their log-probabilities
Graded = tuple[list[list[float]], list[str], list[bool]]  # rewards, the verifier's reasons, and whether right; per completion


class Engine(Protocol):
    """What decodes: `vllm_rollouts.ContinuousEngine`."""

    @property
    def slots(self) -> int:
        """The number of completions that are decoded at the same time."""

    def begin(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[str]:
        """Let one completion per prompt enter, and return their names in the engine."""

    def advance(self) -> dict[str, Completion]:
        """Decode one token of each running completion, and return those that ended, by name."""

    def abort(self, names: Sequence[str]) -> int:
        """End completions, and return the number of their tokens."""


class Rounds:
    """Which groups the rounds of dynamic sampling sample, as far as the groups that are known decide on it.

    Groups are numbered in the stream's order from the first one; round r has the groups r · size to (r + 1) · size − 1. The
    groups fill the batches of `steps` optimizer steps, of `size` groups each, in at most `most` rounds per step.
    """

    def __init__(self, size: int, most: int, steps: int = 1) -> None:
        self.size, self.least, self.most, self.wanted = size, steps, most * steps, size * steps
        self.is_mixed: dict[int, bool] = {}  # of the groups that are known, whether they have right and wrong completions
        self.bound = self.most  # rounds that are certainly enough; it only decreases, and is exact once `is_complete`
        self.is_complete = False  # whether all groups of `bound` rounds are known; fewer rounds then have too few mixed groups

    def learn(self, groups: Mapping[int, bool]) -> None:
        """Add groups that became known, in any order."""
        self.is_mixed.update(groups)
        mixed = [index for index, is_mixed in self.is_mixed.items() if is_mixed]
        enough = (n for n in range(self.least, self.most) if sum(index < n * self.size for index in mixed) >= self.wanted)
        self.bound = next(enough, self.most)
        self.is_complete = all(index in self.is_mixed for index in range(self.needed))

    @property
    def needed(self) -> int:
        """The number of groups of `bound` rounds; the groups from this one on are not necessary."""
        return self.bound * self.size


@dataclass
class Draw:
    """A group in work; every list has one entry per completion."""

    index: int  # of the group in the call
    rows: list[Row]
    prompt_ids: list[list[int]]
    names: list[str]  # of the completions in the engine
    ended: dict[str, Completion] = field(default_factory=dict)  # by name
    completion_ids: list[list[int]] = field(default_factory=list)  # this and the following once all have ended
    logprobs: list[list[float]] = field(default_factory=list)
    texts: list[Any] = field(default_factory=list)
    grading: Future[Graded] | None = None

    def end(self) -> None:
        """Fill the lists, in the order of the seeds."""
        self.completion_ids, self.logprobs = (
            list(column) for column in zip(*map(self.ended.__getitem__, self.names), strict=True)
        )

    @property
    def group(self) -> Group:
        """The group with its rewards; waits until they are known."""
        assert self.grading
        rewards, reasons, correct = self.grading.result()
        table = torch.tensor(rewards)
        return Group(self.rows, self.prompt_ids, self.completion_ids, self.texts, self.logprobs, table, reasons, correct)


class ContinuousSampling:
    """The sampling of one call of the engine by this process.

    `own`: the call's groups that this process decodes, in the stream's order, of all rounds. `draw(index)`: their rows, prompts
    as token ids, and seeds. `read(ids)`: the texts of completions. `grade(rows, texts, ids)`: runs in a thread beside decoding,
    one group after another. `exchange(known)`: gives this process's newly known groups to all processes and returns those of
    all; it raises where training must stop.

    Every `exchange_every` decoded tokens, and with nothing to decode, a process waits for the verdicts of the groups that have
    ended, and for the exchange. What is aborted, and how far the next groups may enter, is decided only there, on all processes
    from the same facts. So batches depend on tokens and not on the clock: a repeated step has the same bits.
    """

    def __init__(
        self,
        engine: Engine,
        rounds: Rounds,
        own: Sequence[int],
        *,
        draw: Callable[[int], tuple[list[Row], list[list[int]], list[int]]],
        read: Callable[[list[list[int]]], list[Any]],
        grade: Callable[[list[Row], list[Any], list[list[int]]], Graded],
        exchange: Callable[[dict[int, bool]], Mapping[int, bool]],
        exchange_every: int,
    ) -> None:
        self.engine, self.rounds, self.waiting = engine, rounds, deque(own)
        self.draw, self.read, self.grade, self.exchange, self.exchange_every = draw, read, grade, exchange, exchange_every
        self.draws: dict[int, Draw] = {}  # by group
        self.unfinished: dict[str, Draw] = {}  # by completion, those in the engine
        self.grading: list[Draw] = []  # ended since the last exchange
        self.discarded = dict.fromkeys(DISCARDED, 0)  # of groups beyond the last round, aborted or not
        self.waited_s = 0.0  # for verdicts, without decoding

    def run(self) -> dict[int, Group]:
        """Return this process's groups of the rounds, by their index in the step."""
        with ThreadPoolExecutor(max_workers=1) as grader:
            try:
                while not self.rounds.is_complete:
                    for _ in range(self.exchange_every):
                        self.admit()
                        if not self.unfinished:
                            break
                        self.advance(grader)
                    self.rounds.learn(self.exchange(self.verdicts()))
                    self.discard()
            finally:
                self.engine.abort(list(self.unfinished))  # none, unless an exception ended the loop
        return {index: draw.group for index, draw in self.draws.items()}

    @property
    def has_next(self) -> bool:
        """Whether a group may enter: one of the rounds that may be necessary."""
        return bool(self.waiting) and self.waiting[0] < self.rounds.needed

    def admit(self) -> None:
        """Let the next groups enter while the engine has free slots."""
        while self.has_next and len(self.unfinished) < self.engine.slots:
            index = self.waiting.popleft()
            rows, prompt_ids, seeds = self.draw(index)
            self.draws[index] = draw = Draw(index, rows, prompt_ids, self.engine.begin(prompt_ids, seeds))
            self.unfinished |= dict.fromkeys(draw.names, draw)

    def advance(self, grader: ThreadPoolExecutor) -> None:
        """Decode one token of each running completion; let the grader have the groups that ended."""
        for name, completion in self.engine.advance().items():
            draw = self.unfinished.pop(name)
            draw.ended[name] = completion
            if len(draw.ended) == len(draw.names):
                draw.end()
                draw.texts = self.read(draw.completion_ids)
                draw.grading = grader.submit(self.grade, draw.rows, draw.texts, draw.completion_ids)
                self.grading.append(draw)

    def verdicts(self) -> dict[int, bool]:
        """Return the groups that have ended since the last call, and whether they are mixed; wait until they are graded."""
        start = time.perf_counter()
        known = {draw.index: draw.group.is_mixed for draw in self.grading}
        self.waited_s += time.perf_counter() - start
        self.grading.clear()
        return known

    def discard(self) -> None:
        """Abort and forget the groups beyond the last round, and count what was decoded of them."""
        needed = self.rounds.needed
        beyond = [draw for index, draw in self.draws.items() if index >= needed]
        names = [name for draw in beyond for name in draw.names if name in self.unfinished]
        tokens = sum(len(ids) for draw in beyond for ids, _ in draw.ended.values())
        self.discarded["discarded_completions"] += sum(len(draw.names) for draw in beyond)
        self.discarded["discarded_tokens"] += tokens + self.engine.abort(names)
        for name in names:
            del self.unfinished[name]
        for draw in beyond:
            del self.draws[draw.index]
