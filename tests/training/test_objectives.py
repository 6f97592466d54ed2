"""Test value and gradient of each objective, computed by TRL, against NumPy code of its equation, at different lengths.

The standard deviation of a group is the sample's plus TRL's 1e-4; the paper's Eq. (1) does not define it.
"""

import numpy as np
import pytest
import torch

from rlvr_sweeps.training import train as train_stage
from rlvr_sweeps.training.dynamic_sampling import Group, PromptStream, fill, overlong_punishment
from tests.conftest import choices

OBJECTIVES = [name for name in choices("algo") if name != "none"]
GROUPS, SIZE, MAX_TOKENS = 4, 4, 24


def reference_advantages(rewards, scale):
    """Return Â_i = (R_i − mean R) / std R over the group, without the division for Dr. GRPO. `rewards`: (groups, G)."""
    centred = rewards - rewards.mean(1, keepdims=True)
    return (centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4) if scale else centred).reshape(-1)


def reference_loss(name, logps, old, advantages, lengths, low, high):
    """Return −J and its gradient by the log-probabilities, (completions, tokens); Eq. (1) of the paper and its variants."""
    ratio, a = np.exp(logps - old), advantages[:, None]
    clipped = np.clip(ratio, 1 - low, 1 + high)
    token = -np.minimum(ratio * a, clipped * a)
    slope = np.where(ratio * a <= clipped * a, -ratio * a, 0.0)
    mask = np.arange(logps.shape[1])[None] < lengths[:, None]
    if name.startswith("grpo"):  # mean over a response's tokens, then over responses
        weight = mask / lengths[:, None] / len(lengths)
    elif name.startswith("dapo"):  # equal weight for every token of the batch
        weight = mask / lengths.sum()
    else:  # Dr. GRPO: a constant in place of 1/|o|
        weight = mask / (len(lengths) * MAX_TOKENS)
    return (token * weight).sum(), slope * weight


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_equal_the_equation(prepared, name, seed, monkeypatch):
    _, cfg = run_and_cfg = prepared(f"algo={name}", "steps=3", "training.per_device_batch_size=16")
    trainer, _ = train_stage.build(*run_and_cfg)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rng = np.random.default_rng(seed)
    rewards = rng.permuted(np.tile([1.0, 0.0, 0.0, 1.0], (GROUPS, 1)), axis=1)
    rewards[0] = [1, 1, 1, 0]
    lengths = rng.integers(1, MAX_TOKENS + 1, GROUPS * SIZE)
    monkeypatch.setattr(trainer, "roll", lambda count: fabricated(rewards, lengths, count))
    inputs = trainer._generate_and_score_completions([{"prompt": None}] * (GROUPS * SIZE))
    advantages = reference_advantages(rewards, scale=cfg["algo"]["trl"]["scale_rewards"] == "group")
    np.testing.assert_allclose(inputs["advantages"].numpy(), advantages, atol=1e-5)

    width = inputs["completion_ids"].shape[1]
    logps = torch.tensor(rng.normal(-1, 0.5, (GROUPS * SIZE, width)), dtype=torch.float32, requires_grad=True)
    old = logps.detach() + torch.tensor(rng.normal(0, 0.4, logps.shape), dtype=torch.float32)
    inputs["old_per_token_logps"] = old
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, **__: (logps, torch.zeros_like(old), None))
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    trl = cfg["algo"]["trl"]
    expected, gradient = reference_loss(
        name,
        logps.detach().numpy().astype(float),
        old.numpy().astype(float),
        advantages,
        lengths,
        trl["epsilon"],
        trl["epsilon_high"],
    )
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(logps.grad.numpy(), gradient, atol=1e-5)
    assert 0 < (gradient != 0).sum() < (np.arange(width)[None] < lengths[:, None]).sum(), "some tokens are clipped"


def fabricated(rewards, lengths, count):
    """Return groups with the given rewards and completion lengths, in the form of a round of rollouts."""
    groups = []
    for index in range(count):
        group_lengths = lengths[index * SIZE : (index + 1) * SIZE]
        ids = [[5] * int(length) for length in group_lengths]
        row = {"prompt": [{"role": "user", "content": "x"}], "gold": "1", "problem": "p"}
        texts = [[{"role": "assistant", "content": "y"}]] * SIZE
        column = torch.tensor(rewards[index], dtype=torch.float32)[:, None]
        reasons = ["correct" if reward else "wrong" for reward in rewards[index]]
        groups.append(Group([row] * SIZE, [[3, 4]] * SIZE, ids, texts, None, column, reasons))
    return groups


def group(*rewards):
    """Return a group with the given rewards and without completions."""
    return Group([{}], [], [], [], None, torch.tensor(rewards, dtype=torch.float32)[:, None])


def test_dynamic_sampling_fills_the_batch_with_mixed_groups():
    rounds = iter([[group(0, 0), group(0, 1)], [group(1, 1), group(1, 0)], [group(0, 1)] * 2])
    pool = fill(lambda _: next(rounds), 2, 10)
    assert pool.rounds == 2 and len(pool.sampled) == 4
    assert all(item.is_mixed for item in pool.trained)
    metrics = pool.metrics()
    assert metrics["trained_zero_std_share"] == 0 and metrics["zero_std_share"] == 0.5 and metrics["bound_hit"] == 0
    assert metrics["reward_mean"] == 0.5  # of everything sampled


def test_dynamic_sampling_is_bounded_and_records_that_it_reached_the_bound():
    calls = []
    pool = fill(lambda count: calls.append(count) or [group(0, 0), group(0, 1)], 3, 2)
    assert len(calls) == 2 and len(pool.trained) == 3
    assert pool.metrics()["bound_hit"] == 1 and pool.metrics()["trained_zero_std_share"] == pytest.approx(1 / 3)


def test_without_dynamic_sampling_a_step_trains_on_all_sampled_groups():
    pool = fill(lambda _: [group(0, 0), group(1, 1)], 2, 1)
    assert pool.rounds == 1 and pool.trained == pool.sampled and pool.metrics()["bound_hit"] == 0


def test_overlong_punishment_against_its_equation():
    """Eq. (13) of DAPO: 0 up to max − buffer, then linear to −1 at max."""
    punish = overlong_punishment(max_tokens=100, buffer=20)
    assert punish(completion_ids=[[0] * n for n in (1, 80, 90, 100)]) == [0.0, 0.0, -0.5, -1.0]


def test_the_prompt_stream_follows_from_seed_and_position():
    stream = PromptStream([{"n": n} for n in range(5)], seed=3)
    drawn = [row["n"] for _, row in stream.take(15)]
    epochs = [drawn[start : start + 5] for start in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs) and len(set(map(tuple, epochs))) > 1
    resumed = PromptStream(stream.rows, seed=3)
    resumed.position = 7
    assert [row["n"] for _, row in resumed.take(8)] == drawn[7:]
    assert [row["n"] for _, row in PromptStream(stream.rows, seed=4).take(15)] != drawn


@pytest.mark.slow
def test_log_probabilities_in_tiles_equal_those_of_whole_logits(prepared, monkeypatch):
    """TRL's fused head computes tiles of the logits: values and gradients with tiles of 7 tokens and 100 vocabulary entries."""
    monkeypatch.setattr("trl.kernels.chunked_logprob.TOKEN_CHUNK_SIZE", 7)
    monkeypatch.setattr("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE", 100)
    trainer, _ = train_stage.build(*prepared("dropout=0"))
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    ids, answer = torch.randint(0, 288, (3, 30), generator=torch.Generator().manual_seed(1)), 12
    everything = torch.ones_like(ids)
    computed = trainer._get_per_token_logps_and_entropies(trainer.model, ids, everything, answer, compute_entropy=True)[:2]
    whole = trainer.model(input_ids=ids, attention_mask=everything).logits[:, -answer - 1 : -1].log_softmax(-1)
    expected = whole.gather(-1, ids[:, -answer:, None]).squeeze(-1), -(whole.exp() * whole).sum(-1)
    for values, reference in zip(computed, expected, strict=True):
        torch.testing.assert_close(values, reference, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(values.square().mean(), trained) for values in (computed[0], expected[0])]
    assert sum(float(gradient.abs().sum()) for gradient in gradients[0]) > 1
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
