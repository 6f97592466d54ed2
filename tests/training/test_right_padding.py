"""Test that rows without a mask give the scores and gradients of TRL's masked rows, and that attention receives no mask."""

import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from rlvr_sweeps.config.settings import largest_pass
from rlvr_sweeps.training import callbacks, trainer
from rlvr_sweeps.training import train as train_stage
from rlvr_sweeps.training.right_padding import IGNORED, RightPadded, needs_mask
from tests.conftest import choices
from tests.training.test_merging import adapted
from tests.training.test_objectives import OBJECTIVES, SIZE, fabricated

PROMPTS, ANSWERS = [5, 2, 7, 1], [3, 6, 0, 2]  # tokens; the third completion is masked, as mask_truncated_completions does
LONGEST = max(ANSWERS)
SHAPE = {
    "vocab_size": 288, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


class Masked:
    """A model called as TRL calls it, with TRL's rows and mask, in the place of RightPadded."""

    def __init__(self, model, longest):
        self.model, self.positions, self.tokens = model, 0, 0

    def __call__(self, **inputs):
        return self.model(**inputs)


@pytest.fixture(scope="module")
def batch():
    """Return ids and mask as TRL pads them: prompts on the left, completions on the right."""
    generator = torch.Generator().manual_seed(0)
    ids, mask = (torch.zeros(len(PROMPTS), max(PROMPTS) + LONGEST, dtype=torch.long) for _ in range(2))
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        tokens = slice(max(PROMPTS) - prompt, max(PROMPTS) + answer)
        ids[row, tokens] = torch.randint(1, 280, (prompt + answer,), generator=generator)
        mask[row, tokens] = 1
    return ids, mask


def scores(model, ids, mask, call, **more):
    """Return log-probabilities and entropies of the completions, and gradients of a random function of them."""
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :-LONGEST] = IGNORED
    model.zero_grad()
    output = call(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True, **more)
    log_probs, entropy = output.log_probs[:, -LONGEST:], output.entropy[:, -LONGEST:]
    weights = torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(7))
    (log_probs * weights).mean().backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return log_probs.detach(), entropy.detach(), gradients, output.aux_loss


def assert_equal(one, other):
    """Compare two results of `scores`."""
    for name, left, right in zip(("log-probabilities", "entropies"), one, other, strict=False):
        torch.testing.assert_close(right, left, atol=1e-5, rtol=1e-5, msg=name)
    largest = max(float(value.abs().max()) for value in one[2].values())
    assert one[2].keys() == other[2].keys() and largest > 1e-5
    for name, value in one[2].items():
        torch.testing.assert_close(other[2][name], value, atol=1e-5 * largest, rtol=0, msg=name)


ARCHITECTURES = {
    "llama": {},
    "llama, eager": {"attn_implementation": "eager"},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 4},  # shorter than the rows
    "gemma3_text": {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_and_gradients_equal_those_of_masked_rows(batch, name):
    torch.manual_seed(1)
    config = AutoConfig.for_model(name.split(",")[0], **SHAPE, **ARCHITECTURES[name])
    model = AutoModelForCausalLM.from_config(config)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    more = {"output_router_logits": True} if name == "qwen2_moe" else {}
    masked = scores(model, *batch, model, **more)
    rows = RightPadded(model, LONGEST)
    unmasked = scores(model, *batch, rows, **more)
    assert_equal(masked, unmasked)
    assert (masked[0] != 0).sum() == sum(ANSWERS)
    if more:
        torch.testing.assert_close(unmasked[3], masked[3])
    longest_row = max(prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True))
    assert (rows.positions, rows.tokens) == (len(PROMPTS) * longest_row, sum(PROMPTS) + sum(ANSWERS))
    assert rows.positions < batch[0].numel()


# Methods that change weights, products, activations, norms and masks of layers in different ways.
IN_CI = ("full", "lora", "dora", "adalora", "ia3", "ln_tuning", "miss", "oft")
METHODS = [name for name in choices("peft") if name != "none"]


@pytest.mark.parametrize(
    "name", [name if name in IN_CI else pytest.param(name, marks=pytest.mark.exhaustive) for name in METHODS]
)
def test_scores_and_gradients_of_every_method_equal_those_of_masked_rows(model, composer, batch, name):
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    policy = adapted(model, composer, name).double()  # RandLoRA's gradients are large sums that cancel
    assert_equal(scores(policy, *batch, policy), scores(policy, *batch, RightPadded(policy, LONGEST)))


def step_of(built, lengths, monkeypatch, longest=11):
    """Run all passes of a step on fabricated groups, prompts of at most `longest` tokens; return loss and gradients by name."""

    def groups_on_unequal_prompts(count):
        groups = fabricated(rewards, lengths, count)
        for index, group in enumerate(groups):
            group.prompt_ids = [[3 + index, *[6] * (longest - 1 - 3 * index)]] * SIZE
        return groups

    rewards = [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    built.current_gradient_accumulation_steps = calls = built.args.steps_per_generation
    monkeypatch.setattr(built, "roll", groups_on_unequal_prompts)
    built.model.zero_grad()
    losses = [built.training_step(built.model, [{"prompt": None}] * len(lengths), None) for _ in range(calls)]
    return float(sum(losses)), {
        name: value.grad.clone() for name, value in built.model.named_parameters() if value.requires_grad
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OBJECTIVES, "grpo training.trl.beta=0.1"])
def test_loss_and_gradient_of_every_objective_equal_those_of_masked_rows(prepared, name, monkeypatch):
    settings = ("steps=9", "batch_size=16", "rollout.group_size=4", "dropout=0", "training.per_device_batch_size=4")
    built, _ = train_stage.build(*prepared(*f"algo={name}".split(), "peft=lora", *settings))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in built.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    lengths = random.Random(3).choices([1, 2, 5, 24], k=16)
    loss, gradients = step_of(built, lengths, monkeypatch)
    positions = built.columns["update_positions"]
    built.calls, built.columns = 0, {}
    monkeypatch.setattr(trainer, "RightPadded", Masked)
    masked_loss, masked_gradients = step_of(built, lengths, monkeypatch)
    assert loss == pytest.approx(masked_loss, abs=1e-5)
    assert max(float(value.abs().max()) for value in masked_gradients.values()) > 1e-3
    for key, value in masked_gradients.items():
        torch.testing.assert_close(gradients[key], value, atol=1e-5, rtol=1e-4, msg=key)
    assert positions > 0


@pytest.fixture
def attention_calls(monkeypatch):
    """Record (bytes of the mask, shape of the queries) of each call of torch's attention with gradient."""
    calls, original = [], torch.nn.functional.scaled_dot_product_attention

    def recording(query, key, value, attn_mask=None, **options):
        if query.requires_grad:
            assert attn_mask is not None or options["is_causal"]
            calls.append((None if attn_mask is None else attn_mask.numel() * attn_mask.element_size(), tuple(query.shape)))
        return original(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recording)
    return calls


@pytest.mark.slow
def test_attention_receives_no_mask_and_the_dry_step_meets_the_largest_pass(prepared, attention_calls, monkeypatch):
    settings = ("batch_size=16", "data.max_prompt_tokens=48", "training.per_device_batch_size=8")
    _, cfg = run_and_cfg = prepared("algo=grpo", "peft=lora", *settings)
    built, _ = train_stage.build(*run_and_cfg)
    callbacks.dry_step(built, cfg, has_state=False)
    dry = list(attention_calls)
    attention_calls.clear()
    lengths = [cfg["rollout"]["max_tokens"]] * 16
    step_of(built, lengths, monkeypatch, longest=48)
    assert {mask for mask, _ in attention_calls} == {None} == {mask for mask, _ in dry}
    assert dry[0] in attention_calls and dry[0][1][0] == 8 and dry[0][1][2] == 48 + cfg["rollout"]["max_tokens"]
    assert max(shape[0] * shape[2] for _, shape in attention_calls) == dry[0][1][0] * dry[0][1][2]
    attention_calls.clear()
    monkeypatch.setattr(trainer, "RightPadded", Masked)
    built.calls = 0
    step_of(built, lengths, monkeypatch, longest=48)
    assert {mask is None for mask, _ in attention_calls} == {False}, "TRL's rows have a mask, so the test above can fail"


def test_a_gpu_that_computes_in_float32_keeps_the_mask(batch, monkeypatch):
    assert needs_mask(torch.device("cuda")) and not needs_mask(torch.device("cpu"))
    torch.set_autocast_enabled("cuda", True)
    try:
        assert not needs_mask(torch.device("cuda"))
    finally:
        torch.set_autocast_enabled("cuda", False)
    monkeypatch.setattr("rlvr_sweeps.training.right_padding.needs_mask", lambda _: True)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE))
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    assert_equal(scores(model, *batch, model), scores(model, *batch, RightPadded(model, LONGEST)))


@pytest.mark.parametrize(
    ("kind", "prompt", "limit", "expected"),
    [
        ("by_length", 100, 50, (8, 50)),
        ("equal", 100, 50, (8, 50)),
        ("by_prompt", 100, 50, (24, 37)),  # 8 · 150 positions: three rows of 400, each a prompt and 8 · 37 tokens
        ("by_prompt", 8, 1000, (16, 503)),
    ],
)
def test_the_largest_pass_fills_its_positions(point, kind, prompt, limit, expected):
    cfg = point(
        f"training.micro_batches={kind}", f"data.max_prompt_tokens={prompt}", f"rollout.max_tokens={limit}", "batch_size=32",
        "rollout.group_size=8", "training.per_device_batch_size=8",
    )  # fmt: skip
    assert largest_pass(cfg) == expected
    completions, tokens = expected
    per_row = 8 if kind == "by_prompt" else 1
    positions = completions // per_row * (prompt + per_row * tokens)
    assert 0.95 * 8 * (prompt + limit) < positions <= 8 * (prompt + limit)
