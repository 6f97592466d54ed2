"""Measure forward and backward passes over padded rows: TRL's, with a mask, against rows that are padded on the right, without.

    python bench/padding.py          two layers of SmolLM2-135M's shape with random weights, float32, one thread

Both get the same four sequences in TRL's layout, prompts padded on the left and completions on the right. "one token" pads a
single position, so that only the mask differs. "unequal" has prompts of 64 to 512 tokens, and completions from an eighth of the
limit to the limit, where rows without TRL's padding on both sides are also shorter. Processor seconds, medians of three in
alternation.
"""

import statistics
import time
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from rlvr_sweeps.training.right_padding import IGNORED, RightPadded

SHAPE = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "intermediate_size": 1536}
LAYERS, VOCABULARY, ROWS, REPEATS = 2, 256, 4, 3


def rows_of(prompts: list[int], answers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask of sequences as TRL pads them."""
    mask = torch.zeros(ROWS, max(prompts) + max(answers), dtype=torch.long)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        mask[row, max(prompts) - prompt : max(prompts) + answer] = 1
    return torch.randint(1, VOCABULARY, mask.shape) * mask, mask


def seconds_of(model: Any, call: Any, ids: torch.Tensor, mask: torch.Tensor, longest: int) -> tuple[float, float]:
    """Return the processor seconds of a forward and backward pass, and the sum of the completions' log-probabilities."""
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :-longest] = IGNORED
    model.zero_grad()
    start = time.process_time()
    total = call(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs.sum()
    total.backward()
    return time.process_time() - start, float(total.detach())


def compare(model: Any, name: str, prompts: list[int], answers: list[int]) -> None:
    """Print seconds, positions and the size of the mask for both, and the ratio of the seconds."""
    ids, mask = rows_of(prompts, answers)
    rows = RightPadded(model, max(answers))
    pairs = [
        (seconds_of(model, model, ids, mask, max(answers)), seconds_of(model, rows, ids, mask, max(answers)))
        for _ in range(REPEATS)
    ]
    masked, unmasked = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
    assert abs(pairs[0][0][1] - pairs[0][1][1]) < 1e-4 * abs(pairs[0][0][1]), "both compute the same"
    print(
        f"{max(answers):>5} tokens, {name:<9}   masked {masked:6.2f} s, {ids.numel():>6,} positions, mask "
        f"{ROWS * ids.shape[1] ** 2 / 2**20:5.1f} MiB   right-padded {unmasked:6.2f} s, {rows.positions // REPEATS:>6,} "
        f"positions   {masked / unmasked:.2f} times",
        flush=True,
    )


def main() -> None:
    """Print one line per limit and padding."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **SHAPE, num_hidden_layers=LAYERS, vocab_size=VOCABULARY)
    model = AutoModelForCausalLM.from_config(config)
    add_fused_lm_head(model)
    print(f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, one thread, {LAYERS} layers")
    for limit in (512, 1024, 2048):
        compare(model, "one token", [255, 256, 256, 256], [limit] * ROWS)
        compare(model, "unequal", [64, 128, 256, 512], [limit, limit // 2, limit // 4, limit // 8])


if __name__ == "__main__":
    main()
