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
WITHOUT_CLIP = ("cispo", "sapo", "vespo")
GROUPS, SIZE, MAX_TOKENS = 4, 4, 24


def reference_advantages(rewards, scale):
    """Return Â_i = (R_i − mean R) / std R over the group, without the division for Dr. GRPO. `rewards`: (groups, G)."""
    centred = rewards - rewards.mean(1, keepdims=True)
    return (centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4) if scale else centred).reshape(-1)


def clipped_surrogate(ratio, a, low, high):
    """Return −min(ratio · A, clip(ratio) · A), and its derivative by the logarithm of the ratio."""
    clipped = np.clip(ratio, 1 - low, 1 + high)
    return -np.minimum(ratio * a, clipped * a), np.where(ratio * a <= clipped * a, -ratio * a, 0.0)


def reference_loss(name, logps, old, advantages, lengths, trl):
    """Return −J and its gradient by the log-probabilities, (completions, tokens); Eq. (1) of the paper and its variants."""
    ratio, a = np.exp(logps - old), advantages[:, None]
    mask = np.arange(logps.shape[1])[None] < lengths[:, None]
    by_response = mask / lengths[:, None] / len(lengths)  # mean over a response's tokens, then over responses
    by_token = mask / lengths.sum()  # equal weight for every token of the batch
    constant = mask / (len(lengths) * MAX_TOKENS)  # Dr. GRPO: a constant in place of 1/|o|
    low, high = trl["epsilon"], trl["epsilon_high"]
    if name in ("gspo", "luspo"):  # one ratio per response: the geometric mean of its tokens' ratios
        mean_ratio = np.exp(((logps - old) * mask).sum(1, keepdims=True) / lengths[:, None])
        response, slope = clipped_surrogate(mean_ratio, a, low, high)
        weight = lengths[:, None] if name == "luspo" else 1.0
        return (response * weight).mean(), slope * weight * by_response
    if name == "cispo":
        factor = -np.minimum(ratio, high) * a
        return (factor * logps * by_token).sum(), factor * by_token
    if name == "vespo":
        w = np.exp(((logps - old) * mask).sum(1, keepdims=True))
        k = np.where(a >= 0, trl["vespo_k_pos"], trl["vespo_k_neg"])
        rate = np.where(a >= 0, trl["vespo_lambda_pos"], trl["vespo_lambda_neg"])
        factor = -(w**k) * np.exp(rate * (1 - w)) * a
        return (factor * logps * by_token).sum(), factor * by_token
    if name == "sapo":
        temperature = np.where(a > 0, trl["sapo_temperature_pos"], trl["sapo_temperature_neg"])
        gate = 1 / (1 + np.exp(-temperature * (ratio - 1)))
        token, slope = -4 / temperature * gate * a, -4 * gate * (1 - gate) * ratio * a
        return (token * by_response).sum(), slope * by_response
    token, slope = clipped_surrogate(ratio, a, low, high)
    weight = by_response if name.startswith("grpo") else by_token if name.startswith("dapo") else constant
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
    values = [tensor.detach().numpy().astype(float) for tensor in (logps, old)]
    expected, gradient = reference_loss(name, *values, advantages, lengths, cfg["algo"]["trl"])
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(logps.grad.numpy(), gradient, atol=1e-5)
    tokens = (np.arange(width)[None] < lengths[:, None]).sum()
    if name in WITHOUT_CLIP:
        assert (gradient != 0).sum() == tokens, "no token loses its gradient"
    else:
        assert 0 < (gradient != 0).sum() < tokens, "some tokens are clipped"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "same"), [("gspo", "grpo"), ("sapo", "grpo"), ("cispo", "dapo"), ("vespo", "dapo")])
def test_objectives_that_differ_off_policy_only_have_one_gradient_at_the_ratio_one(name, same, composer):
    """With one update per rollout the ratio is 1: docs/reproducing.md states which objectives are then the same."""
    rng = np.random.default_rng(0)
    lengths, advantages = rng.integers(1, MAX_TOKENS + 1, 8), rng.normal(0, 1, 8)
    logps = rng.normal(-1, 0.5, (8, lengths.max()))
    gradients = [
        reference_loss(each, logps, logps, advantages, lengths, composer.point([f"algo={each}"]).cfg["algo"]["trl"])[1]
        for each in (name, same)
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-12)


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
        correct = [bool(reward) for reward in rewards[index]]
        groups.append(Group([row] * SIZE, [[3, 4]] * SIZE, ids, texts, None, column, reasons, correct))
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
