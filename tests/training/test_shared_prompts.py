"""Test that a packed row gives the log-probabilities, entropies and gradients of separate sequences, with each prompt once."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.training.shared_prompts import IGNORED, SharedPrompts, pack, refuse_other_attention

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
PROMPTS, ANSWERS, SIZE = [5, 2], [3, 1, 4, 2, 2, 4], 3  # numbers of tokens; two groups of three completions
LONGEST = max(ANSWERS)


@pytest.fixture(scope="module")
def batch():
    """Return ids and mask as TRL pads them: prompts on the left, completions on the right."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 50, (length,), generator=generator) for length in PROMPTS]
    ids, mask = (torch.zeros(len(ANSWERS), max(PROMPTS) + LONGEST, dtype=torch.long) for _ in range(2))
    for row, length in enumerate(ANSWERS):
        prompt = prompts[row // SIZE]
        answer = torch.randint(1, 50, (length,), generator=generator)
        start = max(PROMPTS) - len(prompt)
        ids[row, start : start + len(prompt) + length] = torch.cat([prompt, answer])
        mask[row, start : start + len(prompt) + length] = 1
    return ids, mask


def make(kind, **settings):
    """Return a small random model of a type of transformers, with TRL's fused head."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **settings))
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


def scores(model, ids, mask, call):
    """Return log-probabilities and entropies of the completions, (rows, LONGEST), and the gradient of their sum."""
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :-LONGEST] = IGNORED
    model.zero_grad()
    output = call(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    log_probs, entropy = output.log_probs[:, -LONGEST:], output.entropy[:, -LONGEST:]
    (log_probs.sum() + (log_probs**2).sum()).backward()
    return log_probs.detach(), entropy.detach(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_scores_and_gradients_equal_those_of_separate_sequences(batch, kind):
    more = {"head_dim": 8} if kind == "qwen3" else {"sliding_window": None} if kind == "mistral" else {}
    model = make(kind, **more)
    refuse_other_attention(model)
    separate = scores(model, *batch, model)
    shared = SharedPrompts(model, LONGEST, SIZE)
    packed = scores(model, *batch, shared)
    for name, one, other in zip(("log-probabilities", "entropies"), separate, packed, strict=False):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5, msg=name)
    for one, other in zip(separate[2], packed[2], strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)
    assert (separate[0] != 0).sum() == sum(ANSWERS)
    assert shared.tokens == sum(PROMPTS) - len(PROMPTS) + sum(ANSWERS) < batch[1].sum(), "each prompt is computed once"
    assert shared.positions == 2 * max(4 + 8, 1 + 8)


def test_the_last_token_of_a_prompt_is_repeated_in_each_segment(batch):
    packed = pack(*batch, LONGEST, SIZE)
    head = PROMPTS[0] - 1
    assert packed.ids[0, :head].tolist() == batch[0][0, :head].tolist()
    assert packed.labels[0, :head].tolist() == [IGNORED] * head
    starts = [head, head + 3, head + 4]
    assert packed.ids[0, starts].tolist() == [int(batch[0][0, head])] * 3
    assert packed.positions[0, starts].tolist() == [head] * 3
    assert packed.visible[0, 0, starts[1]].nonzero().flatten().tolist() == [*range(head), starts[1]]


def test_completions_of_another_prompt_in_the_group_are_an_error(batch):
    ids, mask = (value[[0, 1, 3, 2, 4, 5]] for value in batch)
    with pytest.raises(ValueError, match="not whole groups of 3"):
        pack(ids, mask, LONGEST, SIZE)
    with pytest.raises(ValueError, match="not whole groups of 4"):
        pack(*batch, LONGEST, 4)


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        (
            "gemma3_text",
            {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
            "sliding_attention, computed by sdpa",
        ),
        ("llama", {"attn_implementation": "eager"}, "full_attention, computed by eager"),
    ],
)
def test_a_model_with_another_attention_is_refused(kind, settings, named):
    with pytest.raises(Refused, match=f"{named}. Use training.micro_batches=by_length"):
        refuse_other_attention(make(kind, **settings))
