"""A small model with the width ratios of DeepSeek-R1-Distill-Qwen-1.5B: two layers, random weights, a similar chat template."""

import json
from pathlib import Path

# The special tokens of the published template, and its text for system and user messages. The answer begins inside <think>.
BEGIN, END, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% elif m['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)


def make_tokenizer():
    """Return a byte-level tokenizer without merges, like that of rlvr_sweeps.assets.tiny."""
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2Tokenizer

    special = (BEGIN, END, USER, ASSISTANT)
    vocabulary = {token: index for index, token in enumerate((*special, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=[], unk_token=END, bos_token=BEGIN, eos_token=END, pad_token=END,
        additional_special_tokens=[USER, ASSISTANT], padding_side="left",
    )  # fmt: skip
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in ("<think>", "</think>")])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_r1(folder: Path) -> Path:
    """Save the model and its tokenizer in a folder; return the folder.

    hidden : intermediate : heads : key-value heads = 1536 : 8960 : 12 : 2, as in the 1.5B model, at an eighth of its widths.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 32) * 32, hidden_size=192, intermediate_size=1120, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=1, max_position_embeddings=32_768, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, torch_dtype="bfloat16",
    )  # fmt: skip
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_problems(path: Path, count: int, start: int = 0) -> Path:
    """Write `count` sums of two consecutive numbers as a .jsonl file; return its path. The first sum is of `start`."""
    rows = ({"prompt": f"What is {n} + {n + 1}?", "solution": str(2 * n + 1)} for n in range(start, start + count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
