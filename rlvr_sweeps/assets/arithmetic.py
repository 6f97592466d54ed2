"""The task of the embedded world: modular arithmetic with labelled steps, and a teacher that writes solutions with errors.

    Start with 7 A:+8 B:*3 mod 10.   ->   <think> A:7+8=5 B:5*3=5</think>\\boxed{5}

The number of operations is the difficulty tier. The teacher has two ways of working: it boxes a random digit at once, or it
calculates step by step, with some false facts, random slips, skipped operations and broken formats. A model trained on its
solutions has both ways, and samples right and wrong answers, as reinforcement learning requires: it learns fast to calculate
rather than guess, and slowly to avoid single errors.
"""

import random
from dataclasses import dataclass

LABELS = "ABCDE"


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the embedded world; stored as its recipe.json."""

    seed: int = 0
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 256
    teaching_steps: int = 1200
    teaching_batch: int = 64
    teaching_lr: float = 3e-3
    misconceptions: float = 0.1  # share of the 300 facts a op b that the teacher has wrong
    misconception_rate: float = 0.5  # how often the teacher uses its false result of such a fact
    slip_rate: float = 0.03  # how often a step's result is random
    skip_rate: float = 0.1
    broken_format_rate: float = 0.05
    guess_rate: float = 0.6  # how often the teacher boxes a random digit at once, without a step
    evaluated_per_tier: int = 40
    trained_problems: int = 2000


@dataclass(frozen=True)
class ArithmeticProblem:
    """A start value and (operator, operand) of each step, all modulo 10."""

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
    """Return `a op b` modulo 10."""
    return (a + b if op == "+" else a - b if op == "-" else a * b) % 10


def draw_problem(rng: random.Random, tier: int) -> ArithmeticProblem:
    """Draw a random problem of `tier` operations."""
    return ArithmeticProblem(rng.randrange(10), tuple((rng.choice("+-*"), rng.randrange(10)) for _ in range(tier)))


def draw_problems(recipe: Recipe) -> tuple[dict[int, list[ArithmeticProblem]], list[ArithmeticProblem]]:
    """Return the evaluation problems by tier, and the training problems; no problem occurs twice."""
    rng = random.Random(f"problems-{recipe.seed}")
    seen: set[ArithmeticProblem] = set()

    def distinct(tier: int, count: int) -> list[ArithmeticProblem]:
        drawn: list[ArithmeticProblem] = []
        while len(drawn) < count:
            problem = draw_problem(rng, tier)
            if problem not in seen:
                seen.add(problem)
                drawn.append(problem)
        return drawn

    tiers = range(1, len(LABELS) + 1)
    evaluated = {tier: distinct(tier, recipe.evaluated_per_tier) for tier in tiers}
    tier_1_count = recipe.trained_problems // 10  # tier 1 has 300 problems in all
    others_count = recipe.trained_problems - tier_1_count
    trained = distinct(1, tier_1_count)
    for tier in tiers[1:]:
        trained += distinct(tier, others_count // (len(LABELS) - 1))
    rng.shuffle(trained)
    return evaluated, trained


class Teacher:
    """Writes the solutions for the model's supervised training, with errors at the rates of the recipe."""

    def __init__(self, recipe: Recipe) -> None:
        rng = random.Random(f"teacher-{recipe.seed}")
        self.recipe = recipe
        self.false_facts: dict[tuple[int, str, int], int] = {}
        for op in "+-*":
            for a in range(10):
                for b in range(10):
                    if rng.random() < recipe.misconceptions:
                        self.false_facts[a, op, b] = rng.choice([d for d in range(10) if d != apply(a, op, b)])

    def trace(self, rng: random.Random, problem: ArithmeticProblem) -> str:
        """Return one solution of the problem, from after <think> to the boxed answer."""
        recipe, value, body = self.recipe, problem.start, ""
        if rng.random() < recipe.guess_rate:
            return f"</think>\\boxed{{{rng.randrange(10)}}}"
        count = len(problem.operations)
        skipped = rng.randrange(count) if count > 1 and rng.random() < recipe.skip_rate else None
        for index, (op, x) in enumerate(problem.operations):
            if index == skipped:
                continue
            result = apply(value, op, x)
            if (value, op, x) in self.false_facts and rng.random() < recipe.misconception_rate:
                result = self.false_facts[value, op, x]
            elif rng.random() < recipe.slip_rate:
                result = rng.randrange(10)
            body += f" {LABELS[index]}:{value}{op}{x}={result}"
            value = result
        if rng.random() < recipe.broken_format_rate:
            return body + rng.choice((f"</think>{value}", f"\\boxed{{{value}}}"))
        return body + f"</think>\\boxed{{{value}}}"
