"""Compute the update's rows without an attention mask: each row begins with its prompt and is padded on the right.

TRL pads prompts on the left and completions on the right. One padded position then makes transformers build a mask of
(rows, 1, width, width), and torch's attention takes a kernel that computes the whole square. Causal attention of rows that are
padded on the right needs no mask, because a token sees earlier positions only and those of its row are no padding. Values at
padding are discarded. The width is that of the longest row, which is less than the longest prompt and the longest completion
together. Layers with a sliding window still get transformers' mask where the rows are longer than the window.
"""

from typing import Any

import torch
from torch import Tensor

IGNORED = -100  # label of a position that is not scored


class RightPadded:
    """A model with TRL's fused head, called as TRL calls it, that computes rows from their first token on, without a mask."""

    def __init__(self, model: Any, longest: int) -> None:
        self.model, self.longest = model, longest  # `longest`: width of TRL's completions
        self.positions = 0  # computed so far, padding included
        self.tokens = 0  # of these, not padding

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **rest: Any) -> Any:
        """Return the model's output with `log_probs` and `entropy` of the completions' tokens: (rows, longest), 0 at padding.

        `input_ids`, `attention_mask`, `labels`: (rows, prompt + longest), prompts padded on the left, completions on the right.
        """
        total, device = input_ids.shape[1], input_ids.device
        prompt = total - self.longest
        starts = prompt - attention_mask[:, :prompt].sum(1, keepdim=True)
        lengths = attention_mask.sum(1, keepdim=True)
        counts = lengths.flatten().tolist()
        width = max(2, *counts)  # at least one token that is predicted from another
        self.positions += len(counts) * width
        self.tokens += sum(counts)
        columns = torch.arange(width, device=device)
        source, is_token = (starts + columns).clamp(max=total - 1), columns < lengths
        # The router's loss of a mixture of experts is a mean over tokens and must not count padding.
        if needs_mask(device) or rest.get("output_router_logits"):
            rest["attention_mask"] = is_token.long()
        output = self.model(
            input_ids=input_ids.gather(1, source), labels=labels.gather(1, source).masked_fill(~is_token, IGNORED), **rest
        )
        target = torch.arange(prompt - 1, total - 1, device=device) - starts  # where the scores of TRL's columns are
        is_known = (target >= 0) & (target < width - 1)
        target = target.clamp(0, width - 2)
        for name in ("log_probs", "entropy"):
            values = getattr(output, name)
            if values is not None:
                setattr(output, name, values.gather(1, target).masked_fill(~is_known, 0))
        return output


def needs_mask(device: torch.device) -> bool:
    """Return whether attention is slower without a mask: on a GPU in float32, for layers whose heads share keys and values.

    Without a mask transformers 5.17 leaves the sharing to torch, whose kernels for it compute in 16 bits; in float32 torch then
    computes whole squares of scores (https://github.com/pytorch/pytorch/pull/181528). With a mask transformers copies the keys.
    """
    return device.type == "cuda" and not torch.is_autocast_enabled("cuda")
