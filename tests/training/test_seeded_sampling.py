"""Test that seeded sampling draws from the exact distribution, and that a completion depends only on its seed."""

import numpy as np
import pytest
import torch

from rlvr_sweeps.training.seeded_sampling import SeededDraw, nucleus, sample, seed_of

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -3.0])


def draws(count, temperature, top_p, position=0):
    """Return `count` tokens drawn from LOGITS with different seeds."""
    seeds = torch.tensor([seed_of("test", i) for i in range(count)])
    prefix = torch.zeros(count, 3 + position, dtype=torch.long)
    return SeededDraw(seeds, 3, temperature, top_p)(prefix, LOGITS.expand(count, -1)).argmax(-1)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.8), (0.6, 0.95)])
def test_frequencies_follow_the_softmax(temperature, top_p):
    count = 40_000
    expected = (LOGITS / temperature).softmax(-1)
    kept = torch.zeros_like(expected, dtype=torch.bool)
    for token in expected.argsort(descending=True):  # the smallest set whose probability reaches top_p
        if expected[kept].sum() >= top_p:
            break
        kept[token] = True
    expected = (expected * kept / expected[kept].sum()).numpy()
    frequencies = np.bincount(draws(count, temperature, top_p).numpy(), minlength=len(LOGITS)) / count
    error = np.sqrt(expected * (1 - expected) / count)
    assert np.all(np.abs(frequencies - expected) <= 4.5 * error)


def test_positions_are_drawn_independently():
    first, second = draws(20_000, 1.0, 1.0, 0), draws(20_000, 1.0, 1.0, 1)
    p = LOGITS.softmax(-1)
    agree = float((first == second).float().mean())
    assert agree == pytest.approx(float((p * p).sum()), abs=0.02)


def test_nucleus_keeps_the_most_likely_token_even_where_it_alone_exceeds_top_p():
    scores = nucleus(torch.tensor([[5.0, 0.0, -1.0]]), 0.1)
    assert scores.isfinite().tolist() == [[True, False, False]]


def test_a_completion_does_not_depend_on_its_batch(model, tokenizer):
    prompts = [tokenizer("x" * (3 + i % 4))["input_ids"] for i in range(12)]
    seeds = [seed_of(7, i) for i in range(12)]
    ends = {"pad_id": tokenizer.pad_token_id, "end_ids": [tokenizer.eos_token_id]}
    settings = {"max_tokens": 10, "temperature": 1.0, "top_p": 0.9, **ends}
    together = sample(model, prompts, seeds, **settings)
    backwards = sample(model, prompts[::-1], seeds[::-1], **settings)[::-1]
    alone = [sample(model, [prompt], [seed], **settings)[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    assert together == backwards == alone
    assert len(set(map(tuple, together))) > 6  # different seeds give different completions


def test_completed_rows_are_removed_from_the_batch(model, tokenizer, monkeypatch):
    """Completions equal those sampled one by one, with fewer rows per forward pass."""
    widths, forward = [], type(model).forward

    def counted(self, input_ids=None, **kwargs):
        widths.append(len(input_ids))
        return forward(self, input_ids=input_ids, **kwargs)

    ends = list(range(0, 288, 12))  # a completion has twelve tokens on average
    settings = {"max_tokens": 40, "temperature": 1.0, "top_p": 1.0, "pad_id": tokenizer.pad_token_id, "end_ids": ends}
    prompts, seeds = [[5 + i, 6, 7][: 1 + i % 3] for i in range(24)], [seed_of("leave", i) for i in range(24)]
    alone = [sample(model, [prompt], [seed], **settings)[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    monkeypatch.setattr(type(model), "forward", counted)
    assert sample(model, prompts, seeds, **settings) == alone
    longest = max(map(len, alone))
    assert sum(widths) < 0.75 * len(prompts) * longest
    assert widths == sorted(widths, reverse=True) and len(widths) == longest


def test_sampling_does_not_change_the_models_mode(model, tokenizer):
    model.train()
    sample(model, [[5, 6]], [1], max_tokens=2, temperature=1.0, top_p=1.0, pad_id=1, end_ids=[0])
    assert model.training
