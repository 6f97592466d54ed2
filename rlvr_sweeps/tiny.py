"""The embedded world: labelled modular arithmetic, and a tiny Qwen2 taught it by a careless teacher.

    Start with 7 A:+8 B:*3 mod 10.   ->   <think> A:7+8=5 B:5*3=5</think>\\boxed{5}

The number of operations is the difficulty tier. The teacher has fixed misconceptions, slips, skips operations and breaks
the format, so that the model knows better answers than it gives: there is something for reinforcement to find.
"""

import argparse
import json
import math
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlvr_sweeps.identity import digest

LABELS = "ABCDE"
SPECIAL = ("<|end|>", "<|pad|>", "<|begin|>", "<|user|>", "<|assistant|>")
PIECES = ("<think>", "</think>", "\\boxed{", "Start with ", " mod 10.", *(f" {label}:" for label in LABELS))
TEMPLATE = (
    "{{ '<|begin|>' }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|assistant|>' + m['content'] + '<|end|>' }}"
    "{% else %}{{ '<|user|>' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>' }}{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is made; its digest is the world's content key."""

    version: int = 1  # raise it when the code below changes what comes out
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

    @property
    def key(self) -> str:
        return digest(asdict(self))


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


def make_tokenizer() -> Any:
    """A byte-level Qwen2Tokenizer without merges, its frequent pieces as plain (not special) added tokens."""
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2Tokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *letters))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=[], unk_token=SPECIAL[0], bos_token=SPECIAL[2], eos_token=SPECIAL[0], pad_token=SPECIAL[1],
        additional_special_tokens=list(SPECIAL[3:]), padding_side="left",
    )  # fmt: skip
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in PIECES])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(recipe: Recipe, tokenizer: Any) -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(recipe.seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=-(-len(tokenizer) // 32) * 32, hidden_size=recipe.hidden, num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads, num_key_value_heads=recipe.kv_heads, intermediate_size=recipe.intermediate,
            max_position_embeddings=256, tie_word_embeddings=False, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def teaching_batches(recipe: Recipe, tokenizer: Any) -> Iterator[tuple[Any, Any]]:
    """(input ids, labels) of one tier per batch, so that prompts need no padding; labels cover the trace alone."""
    import torch

    rng, teacher = random.Random(f"teaching-{recipe.seed}"), Teacher(recipe)
    for _ in range(recipe.teaching_steps):
        tier = rng.randint(1, len(LABELS))
        rows = []
        for _ in range(recipe.teaching_batch):
            problem = draw(rng, tier)
            message = [{"role": "user", "content": problem.question}]
            prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
            prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            trace_ids = tokenizer(teacher.trace(rng, problem), add_special_tokens=False)["input_ids"]
            rows.append((prompt_ids, [*trace_ids, tokenizer.eos_token_id]))
        width = max(len(prompt) + len(trace) for prompt, trace in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        labels = torch.full((len(rows), width), -100)
        for row, (prompt, trace) in enumerate(rows):
            end = len(prompt) + len(trace)
            ids[row, :end] = torch.tensor(prompt + trace)
            labels[row, len(prompt) : end] = torch.tensor(trace)
        yield ids, labels


def teach(recipe: Recipe, model: Any, tokenizer: Any) -> None:
    """Supervised steps on the teacher's traces, cosine schedule with a short warm-up."""
    import torch
    from tqdm import tqdm

    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.teaching_lr, betas=(0.9, 0.98), weight_decay=0.01)
    steps = recipe.teaching_steps

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / 40) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    model.train()
    interval_s = 0.1 if sys.stderr.isatty() else 10
    batches = teaching_batches(recipe, tokenizer)
    for ids, labels in tqdm(batches, total=steps, desc="making the embedded model", unit="step", mininterval=interval_s):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()


def make(recipe: Recipe, place: Path) -> None:
    """Make the world under a temporary name and rename it to `place`; one thread, so that every bit repeats."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokenizer = make_tokenizer()
    model = make_model(recipe, tokenizer)
    teach(recipe, model, tokenizer)
    temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    try:
        model.save_pretrained(temporary / "model")
        tokenizer.save_pretrained(temporary / "model")
        evaluated, trained = problems(recipe)
        for name, rows in [("train", trained), *((f"tier{tier}", rows) for tier, rows in evaluated.items())]:
            lines = (json.dumps({"question": row.question, "answer": str(row.answer)}) + "\n" for row in rows)
            (temporary / f"{name}.jsonl").write_text("".join(lines))
        (temporary / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
        temporary.chmod(0o755)
        temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    """`python -m rlvr_sweeps.tiny --key` prints the content key; with --into it makes the world."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--key", nargs="?", help="the key a configuration pins; another recipe's is an error")
    parser.add_argument("--into", type=Path)
    asked = parser.parse_args()
    recipe = Recipe()
    if asked.into is None:
        print(recipe.key)
    elif asked.key != recipe.key:
        parser.error(
            f"the configuration pins revision {asked.key}, but this code makes {recipe.key}: set it in conf/model/tiny.yaml"
        )
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        make(recipe, asked.into)


if __name__ == "__main__":
    main()
