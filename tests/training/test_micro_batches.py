"""Test steps cut by length: all rows are kept, padding is small, and loss and gradient equal those of TRL's equal passes."""

import random

import pytest
import torch

from rlvr_sweeps.config.settings import cuts_passes
from rlvr_sweeps.training import train as train_stage
from rlvr_sweeps.training.micro_batches import Share, cut, cut_into, passes_of, rows_of
from tests.training.test_objectives import OBJECTIVES, fabricated

LENGTHS = sorted(random.Random(1).choices(range(1, 400), k=64))


def positions(passes, widths):
    """Return the number of positions of each pass, padding included."""
    return [len(rows) * widths[rows.stop - 1] for rows in passes]


@pytest.mark.parametrize("limit", [400, 1000, 5000, 10**6])
def test_passes_contain_every_row_once_and_at_most_the_limit(limit):
    passes = cut(LENGTHS, limit)
    assert [row for rows in passes for row in rows] == list(range(64))
    assert max(positions(passes, LENGTHS)) <= limit
    assert len(passes) >= sum(LENGTHS) / limit


def test_a_row_above_the_limit_is_a_separate_pass():
    assert cut([1, 2, 50], 10) == [range(2), range(2, 3)]


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_rows_are_cut_into_a_given_number_of_passes_of_similar_size(count):
    passes = cut_into(LENGTHS, count)
    assert len(passes) == count and [row for rows in passes for row in rows] == list(range(64))
    assert all(len(rows) for rows in passes)
    largest = max(positions(passes, LENGTHS))
    assert count == 64 or len(cut(LENGTHS, largest - 1)) > count, "the largest pass is as small as possible"


def test_equal_widths_are_cut_evenly():
    assert [len(rows) for rows in cut_into([7] * 12, 4)] == [3, 3, 3, 3]


def test_a_pass_has_no_common_padding():
    batch = {
        "prompt_ids": torch.tensor([[0, 5, 6], [0, 0, 7]]), "prompt_mask": torch.tensor([[0, 1, 1], [0, 0, 1]]),
        "completion_ids": torch.tensor([[1, 2, 3], [4, 0, 0]]), "completion_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
        "advantages": torch.tensor([0.1, 0.2]), "num_items_in_batch": torch.tensor(4),
        "importance_sampling_ratio": torch.ones(2, 1),
    }  # fmt: skip
    rows = rows_of(batch, torch.tensor([1]))
    assert rows["prompt_ids"].tolist() == [[7]] and rows["completion_ids"].tolist() == [[4]]
    assert rows["advantages"].tolist() == [pytest.approx(0.2)] and rows["num_items_in_batch"] == 4
    assert rows["importance_sampling_ratio"].shape == (1, 1)


def test_two_processes_make_equally_many_passes_of_equally_many_rows(point):
    """Two processes with different lengths, which `gather` exchanges, cut their steps equally."""
    cfg = point("training.per_device_batch_size=2", "batch_size=32", "distributed=ddp", "distributed.processes=2")
    short_lengths, long_lengths = torch.tensor([1, 1, 2, 3] * 4), torch.tensor([1, 9, 40, 48] * 4)

    def batch(lengths):
        mask = torch.arange(48)[None] < lengths[:, None]
        return {
            "prompt_mask": torch.ones(16, 5).long(),
            "completion_mask": mask.long(),
            "completion_ids": torch.ones(16, 48).long(),
        }

    def gathering(own):
        """Return what accelerate's `gather` returns for values that are an own length and a constant."""
        return lambda value: torch.cat([lengths + value[0] - own[0] for lengths in (short_lengths, long_lengths)])

    short_lengths, long_lengths = short_lengths.sort().values, long_lengths.sort().values
    short = passes_of(batch(short_lengths), cfg, 8, gathering(short_lengths))
    long = passes_of(batch(long_lengths), cfg, 8, gathering(long_lengths))
    shapes = [[None if rows is None else len(rows["completion_mask"]) for rows in passes] for passes in (short, long)]
    assert shapes[0] == shapes[1] and shapes[0][0] is None and shapes[0][-1]
    shares = [rows["share"] for rows in long if rows]
    assert sum(share.completions for share in shares) == pytest.approx(1) == sum(share.tokens for share in shares)
    assert shares == [rows["share"] for rows in short if rows] and shares[0].passes == len(shares)


def test_rows_are_cut_by_prompt_and_completion_together(point):
    prompts, answers = torch.tensor([9, 1, 2, 9] * 4), torch.tensor([1, 9, 1, 9] * 4)
    batch = {
        "prompt_mask": (torch.arange(9) >= 9 - prompts[:, None]).long(),
        "completion_mask": (torch.arange(9) < answers[:, None]).long(),
    }
    cfg = point("training.per_device_batch_size=1", "data.max_prompt_tokens=9", "rollout.max_tokens=9", "batch_size=16")
    passes = [rows for rows in passes_of(batch, cfg, 16, lambda value: value) if rows]
    widths = [rows["prompt_mask"].sum(1) + rows["completion_mask"].sum(1) for rows in passes]
    assert torch.cat(widths).tolist() == sorted((prompts + answers).tolist())
    assert max(len(rows) * int(rows.max()) for rows in widths) <= 18
    assert len(passes) == 13, "the four rows of 3 positions in one pass, each of the others alone"


def test_objectives_that_depend_on_the_cut_use_equal_passes(point):
    assert cuts_passes(point()) and not cuts_passes(point("training.micro_batches=equal"))
    for override in ("algo.trl.loss_type=bnpo", "training.trl.entropy_coef=0.01", "+training.trl.use_adaptive_entropy=true",
                  "training.trl.top_entropy_quantile=0.2", "training.trl.num_iterations=2"):  # fmt: skip
        assert not cuts_passes(point(override)), override


def step_of(trainer, rewards, lengths, monkeypatch):
    """Run all passes of a step on fabricated groups; return loss, gradients by name, mean entropy and the number of passes."""
    calls = trainer.args.steps_per_generation
    trainer.current_gradient_accumulation_steps = calls
    monkeypatch.setattr(trainer, "roll", lambda count: fabricated(rewards, lengths, count))
    trainer.model.zero_grad()
    losses = [trainer.training_step(trainer.model, [{"prompt": None}] * len(lengths), None) for _ in range(calls)]
    gradients = {name: value.grad.clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    entropy = trainer._metrics["train"]["entropy"]
    return float(sum(losses)), gradients, sum(entropy) / len(entropy), len(entropy)


# TRL's further losses: sapo and luspo are means over completions, cispo and vespo over tokens, with different clips or none.
FURTHER = [
    "grpo algo.trl.loss_type=sapo",
    "dapo algo.trl.loss_type=cispo",
    "grpo algo.trl.loss_type=luspo training.trl.importance_sampling_level=sequence",
    "dapo algo.trl.loss_type=vespo",
    "dapo training.trl.importance_sampling_level=sequence",
]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "adalora"])
@pytest.mark.parametrize("name", [*OBJECTIVES, *FURTHER])
def test_loss_and_gradient_equal_those_of_equal_passes(prepared, name, method, monkeypatch):
    rng = random.Random(3)
    rewards = [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    lengths = [rng.choice([1, 2, 3, 4, 40]) for _ in range(16)]
    results = {}
    for kind, size in (("equal", 4), ("equal", 16), ("by_length", 4), ("by_prompt", 4)):
        settings = ("steps=9", "batch_size=16", "rollout.group_size=4", "dropout=0", f"training.per_device_batch_size={size}")
        trainer, _ = train_stage.build(
            *prepared(*f"algo={name}".split(), f"peft={method}", *settings, f"training.micro_batches={kind}")
        )
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        results[kind, size] = step_of(trainer, rewards, lengths, monkeypatch)
    loss, gradients, _, passes = results["equal", 4]
    assert passes == 4 and max(float(value.abs().max()) for value in gradients.values()) > 1e-3
    for kind in ("by_length", "by_prompt"):
        cut_loss, cut_gradients, entropy, cut_passes = results[kind, 4]
        assert cut_passes == 2
        assert cut_loss == pytest.approx(loss, abs=1e-5)
        for key, value in gradients.items():
            torch.testing.assert_close(cut_gradients[key], value, atol=1e-5, rtol=1e-4, msg=f"{kind} {key}")
        assert entropy == pytest.approx(results["equal", 16][2], abs=1e-5), "the mean over the step's tokens, for every cut"


def test_a_step_that_fits_is_one_pass(point):
    batch = {"prompt_mask": torch.ones(4, 2).long(), "completion_mask": torch.ones(4, 3).long()}
    passes = passes_of(batch, point(), 3, lambda value: value[None])
    assert passes[:2] == [None, None] and passes[2]["share"] == Share(1, 1.0, 1.0)
    assert passes[2]["completion_mask"] is batch["completion_mask"]
