"""Compute the prompt of a group once in the update, with all its completions in one row (training.micro_batches=by_prompt).

TRL computes the prompt again with each of the G completions. Here a row is the prompt without its last token, and then for each
completion a segment: the prompt's last token and the completion without its last token. A mask lets a segment see the prompt
and itself, and positions count from the prompt, so every log-probability is that of the separate sequence. Dropout draws one
mask for the prompt instead of G. Attention is computed over the whole row: this is faster for short completions only.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlvr_sweeps import patches
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.training.right_padding import IGNORED


@dataclass(frozen=True)
class Packed:
    """The rows of a forward pass, one per group, all padded to the same width, and where each completion lies in them."""

    ids: Tensor  # (groups, width)
    positions: Tensor  # (groups, width), as rotary embeddings count them
    labels: Tensor  # (groups, width): the token that follows each position, or IGNORED
    visible: Tensor  # (groups, 1, width, width): whether a position (third axis) sees another (last axis)
    tokens: int  # positions that are not padding
    index: Tensor  # (completions, longest): flat positions, (groups × width), of the completions' tokens; 0 for padding
    scored: Tensor  # (completions, longest): whether it is a token of the completion


def pack(ids: Tensor, mask: Tensor, longest: int, size: int) -> Packed:
    """Return the packed rows of completions, of which each `size` neighbours have the same prompt.

    `ids` and `mask`: (completions, prompt + longest), prompts padded on the left, completions of up to `longest` tokens on the
    right. Raises ValueError where neighbours have different prompts.
    """
    prompts, answers = ids[:, :-longest], ids[:, -longest:]
    starts = prompts.shape[1] - mask[:, :-longest].sum(1)
    lengths = mask[:, -longest:].sum(1)
    groups = len(ids) // size
    if len(ids) % size or not torch.equal(prompts, prompts[::size].repeat_interleave(size, 0)):
        raise ValueError(f"the {len(ids)} completions of a forward pass are not whole groups of {size} with the same prompt")
    heads = (prompts.shape[1] - 1 - starts[::size]).tolist()  # tokens of each prompt without its last
    widths = [head + int(lengths[group * size : (group + 1) * size].sum()) for group, head in enumerate(heads)]
    width = max(widths)
    packed, labels = ids.new_zeros(groups, width), ids.new_full((groups, width), IGNORED)
    positions, segments = ids.new_zeros(groups, width), ids.new_full((groups, width), -1)  # segment 0: the prompt; -1: padding
    index = ids.new_zeros(answers.shape)
    for group, head in enumerate(heads):
        prompt = prompts[group * size, prompts.shape[1] - head - 1 :]
        packed[group, :head], segments[group, :head] = prompt[:-1], 0
        positions[group, :head] = torch.arange(head, device=ids.device)
        start = head
        for row in range(group * size, (group + 1) * size):
            length = int(lengths[row])
            segment = slice(start, start + length)
            packed[group, segment] = torch.cat([prompt[-1:], answers[row, : length - 1]])
            labels[group, segment], segments[group, segment] = answers[row, :length], row - group * size + 1
            positions[group, segment] = torch.arange(head, head + length, device=ids.device)
            index[row, :length] = torch.arange(start, start + length, device=ids.device) + group * width
            start += length
    same = segments[:, :, None] == segments[:, None, :]
    visible = (same | (segments[:, None, :] == 0)) & torch.ones(width, width, dtype=torch.bool, device=ids.device).tril()
    visible |= torch.eye(width, dtype=torch.bool, device=ids.device)  # a softmax over nothing would not be a number
    scored = torch.arange(longest, device=ids.device) < lengths[:, None]
    return Packed(packed, positions, labels, visible[:, None], sum(widths), index, scored)


class SharedPrompts:
    """A model with TRL's fused head, called as TRL calls it, that computes each group's prompt once."""

    def __init__(self, model: Any, longest: int, size: int) -> None:
        self.model, self.longest, self.size = model, longest, size
        self.positions = 0  # computed so far, padding included
        self.tokens = 0  # of these, not padding

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        """Return the model's output with `log_probs` and `entropy` of the completions' tokens: (completions, longest)."""
        packed = pack(input_ids, attention_mask, self.longest, self.size)
        self.positions += packed.ids.numel()
        self.tokens += packed.tokens
        output = self.model(
            input_ids=packed.ids, position_ids=packed.positions, attention_mask=packed.visible, shift_labels=packed.labels,
            fused_lm_head=True,
        )  # fmt: skip
        for name in ("log_probs", "entropy"):
            values = getattr(output, name)
            if values is not None:
                setattr(output, name, values.flatten()[packed.index].masked_fill(~packed.scored, 0))
        return output


def refuse_other_attention(model: Any) -> None:
    """Raise Refused for a model whose layers do not all have full attention, or that does not compute it by torch's SDPA."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    implementation = patches.attention_implementation(config)
    if kinds != {"full_attention"} or implementation != "sdpa":
        raise Refused(
            "training.micro_batches=by_prompt needs full attention in every layer, computed by sdpa; this model has "
            f"{', '.join(sorted(kinds))}, computed by {implementation}. Use training.micro_batches=by_length."
        )
