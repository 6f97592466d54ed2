"""Make the embedded world: a tiny Qwen2 trained on the task of `arithmetic.py`, with its tokenizer and its problems.

Problems and tokenizer are the same on every machine. The weights are the same only on one type of processor, since 1,200 steps
amplify rounding differences. Therefore the world is stored in `embedded/`, for two seeds; run this module only to change it.
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlvr_sweeps.assets.arithmetic import LABELS, Recipe, Teacher, draw_problem, draw_problems
from rlvr_sweeps.assets.locations import WORLDS_FOLDER, content_key

SPECIAL = ("<|end|>", "<|pad|>", "<|begin|>", "<|user|>", "<|assistant|>")
PIECES = ("<think>", "</think>", "\\boxed{", "Start with ", " mod 10.", *(f" {label}:" for label in LABELS))
TEMPLATE = (
    "{{ '<|begin|>' }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|assistant|>' + m['content'] + '<|end|>' }}"
    "{% else %}{{ '<|user|>' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>' }}{% endif %}"
)


def make_tokenizer() -> Any:
    """Return a byte-level Qwen2Tokenizer without merges, with frequent pieces as added tokens that are not special."""
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
    """Return an untrained Qwen2 of the recipe's size, with random weights by the recipe's seed."""
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
    """Yield (input ids, labels), each (batch, tokens) and padded on the right; only the teacher's solutions have labels."""
    import torch

    rng, teacher = random.Random(f"teaching-{recipe.seed}"), Teacher(recipe)
    for _ in range(recipe.teaching_steps):
        rows = []
        for _ in range(recipe.teaching_batch):
            problem = draw_problem(rng, tier=rng.randint(1, len(LABELS)))
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
    """Train the model on the teacher's solutions, with a cosine schedule after a short warm-up."""
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


def make(recipe: Recipe, folder: Path) -> None:
    """Make the world in `folder`, which must not exist. One thread, so that every bit repeats on the same machine."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokenizer = make_tokenizer()
    model = make_model(recipe, tokenizer)
    teach(recipe, model, tokenizer)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        model.save_pretrained(temporary / "model")
        tokenizer.save_pretrained(temporary / "model")
        evaluated, trained = draw_problems(recipe)
        for name, rows in [("train", trained), *((f"tier{tier}", rows) for tier, rows in evaluated.items())]:
            lines = (json.dumps({"question": row.question, "answer": str(row.answer)}) + "\n" for row in rows)
            (temporary / f"{name}.jsonl").write_text("".join(lines))
        (temporary / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    """Make the embedded world in FOLDER, which takes some minutes, and print its key for conf/model/tiny.yaml."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, nargs="?", default=WORLDS_FOLDER / "tiny", help="by default the package's own"
    )
    parser.add_argument("--key", action="store_true", help="only print the key of an existing FOLDER")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="of weights, teacher, and problems")
    arguments = parser.parse_args()
    if not arguments.key:
        if arguments.folder.exists():
            parser.error(f"{arguments.folder} exists; remove it, or give another folder")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        make(Recipe(seed=arguments.seed), arguments.folder)
    print(content_key(arguments.folder))


if __name__ == "__main__":
    main()
