"""Sample with transformers, one seed per completion.

A completion depends on its seed and the model only: not on the other rows of the batch, their order or the number of processes.
Gumbel noise from a hash of (seed, position, token) is added to the logits; the argmax of the sum is an exact draw from the
softmax (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030). A prompt with several completions is computed once. Completions
that have ended leave the batch, so that the longest are not decoded together with padding.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

GOLDEN, MIX_1, MIX_2 = (
    -7046029254386353131,
    -4658895280553007687,
    -7723592293110705685,
)  # splitmix64's constants, as int64


def seed_of(*parts: object) -> int:
    """Return a signed 64-bit seed from the parts that identify a completion, such as (base seed, problem id, sample index)."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def mix(x: Tensor) -> Tensor:
    """Return splitmix64's finaliser of int64 values, whose products wrap like unsigned ones."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * MIX_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * MIX_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


class SeededDraw(LogitsProcessor):
    """Turn logits into scores whose argmax is a draw at `temperature` and `top_p`, from each row's own seed."""

    def __init__(self, seeds: Tensor, prompt_length: int, temperature: float, top_p: float) -> None:
        self.seeds, self.prompt_length = seeds, prompt_length
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the noisy scores; `scores` are the logits of the next token, (rows, vocabulary)."""
        scores = scores.float() / self.temperature
        if self.top_p < 1:
            scores = nucleus(scores, self.top_p)
        position = torch.tensor(input_ids.shape[1] - self.prompt_length + 1, device=scores.device)
        tokens = torch.arange(1, scores.shape[1] + 1, device=scores.device)
        state = mix(self.seeds + position * GOLDEN)[:, None] + tokens * GOLDEN
        uniform = (((mix(state) >> 11) & 0x1FFFFFFFFFFFFF).double() + 0.5) * 2.0**-53
        return scores - torch.log(-torch.log(uniform)).float()


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Set scores outside the smallest set of tokens with probability ≥ `top_p` to -inf (Holtzman et al. 2020)."""
    ordered, order = scores.sort(dim=-1, descending=True)
    share = ordered.softmax(-1)
    outside = share.cumsum(-1) - share >= top_p
    return scores.masked_fill(outside.scatter(-1, order, outside), -torch.inf)


class HalfEnded(StoppingCriteria):
    """End a call of generate once at least half of its rows have drawn an end token."""

    def __init__(self, end_ids: Tensor) -> None:
        self.end_ids, self.ended = end_ids, torch.tensor(False, device=end_ids.device)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.ended = self.ended | torch.isin(input_ids[:, -1], self.end_ids)
        return (2 * self.ended.sum() >= len(self.ended)).expand(len(self.ended))


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    pad_id: int,
    end_ids: Sequence[int],
) -> list[list[int]]:
    """Return one completion per prompt, as token ids with the end token; a completion without one was truncated."""
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0; the value is {temperature}")
    width = max(map(len, prompts))
    device = model.device
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    ends, active, row_seeds = (
        torch.tensor(end_ids, device=device),
        torch.arange(len(prompts), device=device),
        torch.tensor(seeds),
    )
    settings = GenerationConfig(
        max_length=width + max_tokens, do_sample=False, pad_token_id=pad_id, eos_token_id=list(end_ids), use_cache=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    completions = [list[int]() for _ in prompts]
    was_training = model.training
    model.eval()
    try:
        cache = prompt_cache(model, ids, mask, settings)
        while len(active) and ids.shape[1] < width + max_tokens:  # each call ends once half of its rows have ended
            draw = SeededDraw(row_seeds.to(device)[active], width, temperature, top_p)
            output = model.generate(
                input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=settings,
                logits_processor=LogitsProcessorList([draw]), stopping_criteria=StoppingCriteriaList([HalfEnded(ends)]),
            )  # fmt: skip
            answers = output.sequences[:, width:]
            for index, row in zip(active.tolist(), answers.tolist(), strict=True):
                completions[index] = until_end(row, set(end_ids))
            unfinished = (~torch.isin(answers, ends).any(1)).nonzero().squeeze(1)
            mask = torch.cat([mask, mask.new_ones(len(ids), output.sequences.shape[1] - mask.shape[1])], 1)[unfinished]
            ids, active, cache = output.sequences[unfinished], active[unfinished], rows_of(output.past_key_values, unfinished)
    finally:
        model.train(was_training)
    return completions


def prompt_cache(model: Any, ids: Tensor, mask: Tensor, settings: GenerationConfig) -> Any:
    """Return the cache of all tokens of the prompts but the last, with repeated prompts computed once.

    None where no prompt is repeated, the prompts have one token, or the model's cache cannot be cut.
    """
    unique, index = torch.unique(torch.cat([ids, mask], 1), dim=0, return_inverse=True)
    if len(unique) == len(ids) or ids.shape[1] == 1:
        return None
    width = ids.shape[1]
    one_token = GenerationConfig(**settings.to_diff_dict() | {"max_length": width + 1})
    output = model.generate(input_ids=unique[:, :width], attention_mask=unique[:, width:], generation_config=one_token)
    cache = rows_of(output.past_key_values, index)
    if cache is not None:
        cache.crop(width - 1)
    return cache


def rows_of(cache: Any, rows: Tensor) -> Any:
    """Return the cache of these rows, or None where the model's cache cannot be cut, so that it is computed again."""
    if not len(rows) or not isinstance(cache, DynamicCache):
        return None
    cache.batch_select_indices(rows)
    return cache


def until_end(ids: list[int], end_ids: set[int]) -> list[int]:
    """Return the ids up to the first end token, which is included."""

    for position, token in enumerate(ids):
        if token in end_ids:
            return ids[: position + 1]
    return ids
