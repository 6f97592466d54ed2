"""Simulate what one call of the engine for all sampling rounds of a step saves against rounds: ratios of seconds per rollout.

    python bench/sampling_rounds.py [--model r1_qwen_1_5b] [--steps 24]

Nothing is measured on a GPU. The time of a forward pass is that of the planner (rlvr_sweeps/planning/timing.py with the
constants of conf/hardware.yaml). Which groups are sampled is decided by the code of training (`Rounds`). Lengths are lognormal
and cut at the limit: `length` is their mean as a share of the limit, `spread` the standard deviation of their logarithm, with
three quarters of the variance between groups. An engine decodes sequences in the order in which they enter, at most as many
at once as it has slots. Where the KV cache is full, the last one that entered is put back, and computed again later.

Columns: the share of groups without signal, and which groups they are; rounds per step; seconds of a step's rollouts in rounds.
Then the seconds of one call as a share of these, with as many slots as one, two or four rounds have completions; with two, the
share of the tokens that is thrown away, and the seconds of a call that ends as soon as the batch is known, within a round.
Last, the seconds per step of a call that samples two steps (rollout.lag=1), also as a share of those in rounds.
"""

import argparse
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

from rlvr_sweeps.assets.architecture import architecture, base_parameters
from rlvr_sweeps.config.compose import offline_composer
from rlvr_sweeps.planning import timing
from rlvr_sweeps.planning.hardware import gpu_of, rates
from rlvr_sweeps.planning.memory import footprint, key_value_bytes, sampling_bytes
from rlvr_sweeps.training.continuous_sampling import EXCHANGES, Rounds

CHUNK = 32  # passes that are simulated at once
SLOTS = (1, 2, 4)  # sequences decoded at once, in rounds
CASES = (  # length, spread, share of groups without signal, which ones
    (0.5, 0.6, 0.5, "any"), (0.5, 0.6, 0.5, "easy and hard"), (0.5, 0.6, 0.5, "hard"), (0.5, 0.6, 0.25, "any"),
    (0.5, 0.6, 0.7, "any"), (0.25, 0.8, 0.5, "any"), (0.25, 0.8, 0.5, "hard"),
)  # fmt: skip


@dataclass
class Sequence:
    """A completion: its group in the step, its length and the tokens decoded so far."""

    group: int
    length: int
    tokens: int = 0


@dataclass
class Machine:
    """What decodes: the run's model on one GPU, by the planner's constants."""

    cfg: dict
    slots: int

    def __post_init__(self) -> None:
        model, gpu = architecture(self.cfg), gpu_of(self.cfg)
        assert model and gpu
        memory = footprint(self.cfg, model, gpu)
        assert memory
        self.cached = memory.parts["KV cache"] / key_value_bytes(model, sampling_bytes(self.cfg, "rollout"))  # tokens
        self.prompt = self.cfg["data"]["max_prompt_tokens"]
        overhead = rates(gpu)["decode_overhead_s"]
        self.pass_s = lambda sequences, context: timing.pass_s(
            self.cfg, "rollout", model, gpu, sequences, context, overhead, sampling_bytes(self.cfg, "rollout")
        )
        self.prefill_s = 2 * (base_parameters(model) or 0) / (rates(gpu)["decoding"] * gpu.bf16_tflops * 1e12)


@dataclass
class Engine:
    """One GPU's engine at work."""

    machine: Machine
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)  # in the order of their entry
    decoded: int = 0

    def load(self) -> int:
        """Return the number of sequences that have not ended."""
        return len(self.waiting) + len(self.running)

    def advance(self) -> tuple[float, list[Sequence]]:
        """Decode CHUNK tokens of each running sequence; return the seconds, and the sequences that ended."""
        machine, seconds = self.machine, 0.0
        context = sum(machine.prompt + sequence.tokens for sequence in self.running)
        while self.running and context + CHUNK * len(self.running) > machine.cached:
            last = self.running.pop()
            context -= machine.prompt + last.tokens
            self.waiting.appendleft(last)
        while self.waiting and len(self.running) < machine.slots:
            own = machine.prompt + self.waiting[0].tokens
            if self.running and context + own + 2 * CHUNK * (len(self.running) + 1) > machine.cached:
                break
            self.running.append(self.waiting.popleft())
            context += own
            seconds += machine.prefill_s * own
        seconds += CHUNK * machine.pass_s(len(self.running), context + CHUNK * len(self.running) / 2)
        ended = []
        for sequence in self.running:
            before = sequence.tokens
            sequence.tokens = min(sequence.length, before + CHUNK)
            self.decoded += sequence.tokens - before
            if sequence.tokens == sequence.length:
                ended.append(sequence)
        self.running = [sequence for sequence in self.running if sequence.tokens < sequence.length]
        return seconds, ended

    def drop(self, needed: int) -> None:
        """Abort the sequences of the groups from `needed` on."""
        self.waiting = deque(sequence for sequence in self.waiting if sequence.group < needed)
        self.running = [sequence for sequence in self.running if sequence.group < needed]


@dataclass(frozen=True)
class Stream:
    """The groups of one call of the engine, of all rounds, in the stream's order."""

    lengths: np.ndarray  # (groups, completions)
    mixed: np.ndarray  # (groups,)

    def sequences(self, group: int) -> list[Sequence]:
        """Return a group's completions, not begun."""
        return [Sequence(group, int(length)) for length in self.lengths[group]]


def streams(cfg: dict, mean: float, spread: float, without: float, signal: str, count: int, steps: int = 1) -> Iterator[Stream]:
    """Yield the streams of `count` calls, each of `steps` steps: lengths of `mean` share of the limit, a share `without` of
    groups without signal.
    """
    limit, size = cfg["rollout"]["max_tokens"], cfg["rollout"]["group_size"]
    groups = cfg["batch_size"] // size * cfg["algo"]["sampling_rounds"] * steps
    rng = np.random.default_rng(0)
    sample = rng.standard_normal(100_000) * spread
    low, high = 0.0, 20.0
    for _ in range(60):  # the median, in nats, that gives the mean of the cut lengths
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(limit, np.exp(middle + sample)).mean() < mean * limit else (low, middle)
    for _ in range(count):
        of_group, within = rng.standard_normal(groups), rng.standard_normal((groups, size))
        logs = low + spread * (math.sqrt(0.75) * of_group[:, None] + math.sqrt(0.25) * within)
        place = np.argsort(np.argsort(of_group)) / groups  # 0: the shortest group
        mixed = {
            "any": rng.random(groups) >= without,
            "easy and hard": (place >= without / 2) & (place < 1 - without / 2),
            "hard": place < 1 - without,
        }[signal]
        yield Stream(np.clip(np.exp(logs), 1, limit).astype(int), mixed)


def in_rounds(cfg: dict, machine: Machine, stream: Stream) -> tuple[float, int, int]:
    """Return the seconds of a step's rollouts in rounds, the number of rounds, and the tokens decoded."""
    size, world = cfg["batch_size"] // cfg["rollout"]["group_size"], cfg["distributed"]["processes"]
    seconds, decoded = 0.0, 0
    for number in range(cfg["algo"]["sampling_rounds"]):
        by_rank = []
        for rank in range(world):
            engine, spent = Engine(machine), 0.0
            for offset in range(rank * size // world, (rank + 1) * size // world):
                engine.waiting.extend(stream.sequences(number * size + offset))
            while engine.load():
                spent += engine.advance()[0]
            by_rank.append(spent)
            decoded += engine.decoded
        seconds += max(by_rank)
        if stream.mixed[: (number + 1) * size].sum() >= size:
            break
    return seconds, number + 1, decoded


def at_once(cfg: dict, machine: Machine, stream: Stream, whole_rounds: bool = True, steps: int = 1) -> tuple[float, int, int]:
    """Return the same for one call of the engine for `steps` steps.

    Without `whole_rounds` it ends when the batch is known, within a round.
    """
    size, world = cfg["batch_size"] // cfg["rollout"]["group_size"], cfg["distributed"]["processes"]
    rounds = Rounds(size, cfg["algo"]["sampling_rounds"], steps)
    engines = [Engine(machine) for _ in range(world)]
    groups = range(len(stream.mixed))
    next_groups = [deque(index for index in groups if index % size * world // size == rank) for rank in range(world)]
    left = dict.fromkeys(groups, stream.lengths.shape[1])
    per_exchange = max(1, cfg["rollout"]["max_tokens"] // EXCHANGES // CHUNK)
    seconds = 0.0
    while not rounds.is_complete:
        known, by_rank = {}, []
        for engine, own in zip(engines, next_groups, strict=True):
            spent = 0.0
            for _ in range(per_exchange):
                while own and own[0] < rounds.needed and engine.load() < machine.slots:
                    engine.waiting.extend(stream.sequences(own.popleft()))
                if not engine.load():
                    break
                took, ended = engine.advance()
                spent += took
                for sequence in ended:
                    left[sequence.group] -= 1
                    if not left[sequence.group]:
                        known[sequence.group] = bool(stream.mixed[sequence.group])
            by_rank.append(spent)
        seconds += max(by_rank)
        rounds.learn(known)
        for engine in engines:
            engine.drop(rounds.needed)
        if not whole_rounds and is_determined(rounds, size):
            break
    return seconds, rounds.bound, sum(engine.decoded for engine in engines)


def is_determined(rounds: Rounds, size: int) -> bool:
    """Return whether the first `size` mixed groups of the stream, and all before them, are known."""
    mixed, index = 0, 0
    while index in rounds.is_mixed and mixed < size:
        mixed += rounds.is_mixed[index]
        index += 1
    return mixed == size


def main() -> None:
    """Print a table for one GPU and one for four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="r1_qwen_1_5b")
    parser.add_argument("--steps", type=int, default=24, help="simulated steps of each row")
    parser.add_argument("--set", nargs="*", default=[], help="further overrides, such as batch_size=256")
    options = parser.parse_args()
    composer = offline_composer()
    point = composer.point([f"model={options.model}", "peft=lora", "algo=dapo", "cluster.gpu=h100", *options.set]).cfg
    batch = point["batch_size"]
    print(
        f"simulated, not measured on a GPU: {options.model} on H100, {batch} completions a round, {options.steps} steps a row"
    )
    for count in (1, 4):
        cfg = timing.on_gpus(point, count)
        rows = cfg["batch_size"] // count
        machines = [Machine(cfg, factor * rows) for factor in SLOTS]
        print(
            f"\n{count} GPU{'s' * (count > 1)}, {rows} completions of a round on each, {machines[0].cached:,.0f} cached tokens"
        )
        print(
            "                                       in rounds    in one call, slots:       thrown   within   two steps, slots:"
        )
        print(
            "length  spread  without signal        rounds      s     ×1    ×2    ×4          away  a round     ×1    ×2    ×4"
        )
        for mean, spread, without, signal in CASES:
            of_steps = list(streams(cfg, mean, spread, without, signal, options.steps))
            base = [in_rounds(cfg, machines[0], stream) for stream in of_steps]
            calls = [[at_once(cfg, machine, stream) for stream in of_steps] for machine in machines]
            early = [at_once(cfg, machines[1], stream, whole_rounds=False) for stream in of_steps]
            assert all([rounds for _, rounds, _ in call] == [rounds for _, rounds, _ in base] for call in calls)
            seconds = fmean(row[0] for row in base)
            ratios = [fmean(row[0] for row in call) / seconds for call in calls]
            tokens = [sum(row[2] for row in each) for each in (base, calls[1])]
            head = (
                f"{mean:6.2f}  {spread:6.1f}  {without:4.0%} {signal:15}  {fmean(row[1] for row in base):6.1f}  {seconds:5.0f}"
            )
            shares = "  ".join(f"{ratio:4.2f}" for ratio in ratios)
            pairs = list(streams(cfg, mean, spread, without, signal, max(1, options.steps // 2), steps=2))
            of_two = [fmean(at_once(cfg, each, pair, steps=2)[0] for pair in pairs) / 2 / seconds for each in machines]
            rest = f"{1 - tokens[0] / tokens[1]:4.0%}  {fmean(row[0] for row in early) / seconds:7.2f}     "
            rest += "  ".join(f"{ratio:4.2f}" for ratio in of_two)
            print(f"{head}   {shares}          {rest}", flush=True)


if __name__ == "__main__":
    main()
