"""The embedded task: labelled modular arithmetic, and a careless teacher who writes traces for it.

    Start with 7 A:+8 B:*3 mod 10.   ->   <think> A:7+8=5 B:5*3=5</think>\\boxed{5}

The number of operations is the difficulty tier. The teacher has fixed misconceptions, slips, skips operations and breaks
the format, so that a model it taught knows better answers than it gives: there is something for reinforcement to find.
"""

import random
from dataclasses import dataclass

LABELS = "ABCDE"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is made."""

    seed: int = 0
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 256
    teaching_steps: int = 400
    teaching_batch: int = 64
    teaching_lr: float = 3e-3
    misconceptions: float = 0.3  # share of the 300 facts the teacher has wrong ...
    misconception_rate: float = 0.5  # ... half of the times it uses them
    slip_rate: float = 0.03
    skip_rate: float = 0.1
    broken_format_rate: float = 0.05
    evaluated_per_tier: int = 40
    trained_problems: int = 2000


@dataclass(frozen=True)
class Problem:
    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def question(self) -> str:
        steps = "".join(f" {label}:{op}{x}" for label, (op, x) in zip(LABELS, self.operations, strict=False))
        return f"Start with {self.start}{steps} mod 10."

    @property
    def answer(self) -> int:
        value = self.start
        for op, x in self.operations:
            value = apply(value, op, x)
        return value


def apply(a: int, op: str, b: int) -> int:
    return (a + b if op == "+" else a - b if op == "-" else a * b) % 10


def draw(rng: random.Random, tier: int) -> Problem:
    return Problem(rng.randrange(10), tuple((rng.choice("+-*"), rng.randrange(10)) for _ in range(tier)))


def problems(recipe: Recipe) -> tuple[dict[int, list[Problem]], list[Problem]]:
    """Evaluation problems by tier, and training problems that are none of them; all distinct."""
    rng = random.Random(f"problems-{recipe.seed}")
    seen: set[Problem] = set()

    def distinct(tier: int, count: int) -> list[Problem]:
        found: list[Problem] = []
        while len(found) < count:
            problem = draw(rng, tier)
            if problem not in seen:
                seen.add(problem)
                found.append(problem)
        return found

    tiers = range(1, len(LABELS) + 1)
    evaluated = {tier: distinct(tier, recipe.evaluated_per_tier) for tier in tiers}
    few = recipe.trained_problems // 10  # tier 1 has 300 problems in all
    rest = recipe.trained_problems - few
    trained = distinct(1, few)
    for tier in tiers[1:]:
        trained += distinct(tier, rest // (len(LABELS) - 1))
    rng.shuffle(trained)
    return evaluated, trained


class Teacher:
    """Writes the traces the model first learns from, with the mistakes the recipe names."""

    def __init__(self, recipe: Recipe) -> None:
        rng = random.Random(f"teacher-{recipe.seed}")
        self.recipe = recipe
        self.wrong: dict[tuple[int, str, int], int] = {}
        for op in "+-*":
            for a in range(10):
                for b in range(10):
                    if rng.random() < recipe.misconceptions:
                        self.wrong[a, op, b] = rng.choice([d for d in range(10) if d != apply(a, op, b)])

    def trace(self, rng: random.Random, problem: Problem) -> str:
        recipe, value, body = self.recipe, problem.start, ""
        count = len(problem.operations)
        skipped = rng.randrange(count) if count > 1 and rng.random() < recipe.skip_rate else None
        for index, (op, x) in enumerate(problem.operations):
            if index == skipped:
                continue
            result = apply(value, op, x)
            if (value, op, x) in self.wrong and rng.random() < recipe.misconception_rate:
                result = self.wrong[value, op, x]
            elif rng.random() < recipe.slip_rate:
                result = rng.randrange(10)
            body += f" {LABELS[index]}:{value}{op}{x}={result}"
            value = result
        if rng.random() < recipe.broken_format_rate:
            return body + rng.choice((f"</think>{value}", f"\\boxed{{{value}}}"))
        return body + f"</think>\\boxed{{{value}}}"
