"""Test with vLLM on the CPU that one call of the engine gives the groups, metrics and weights of sampling in rounds."""

import time

import pytest
import torch

from rlvr_sweeps.errors import Stopped
from rlvr_sweeps.files import read_rows
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.reading import latest_step
from rlvr_sweeps.training import train as train_stage
from tests.training.test_stopping import request_stop, rows_without_times  # noqa: F401
from tests.training.test_vllm_rollouts import ON_CPU

pytestmark = pytest.mark.slow
pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

SMALL = (*ON_CPU, "peft=lora", "algo=dapo", "analysis=none", "training.samples_per_step=64")
# vLLM's products depend on the shape of the batch in their last bits, so its log-probabilities do, and what follows from them.
ROUNDED = ("sampler_ratio_mean", "sampler_ratio_p99", "sampler_kl", "entropy", "grad_norm", "loss")
DISCARDED = ("discarded_completions", "discarded_tokens")


def facts(group):
    """Return what a group was sampled from and what came of it, without log-probabilities."""
    return group.rows, group.prompt_ids, group.completion_ids, group.completions, group.rewards.tolist(), group.reasons


def assert_equal(run, other):
    """Assert that two runs have the same rows, completions and weights, to the bit.

    The columns of the sampler's check are left out: a resumed run checks it at its first step.
    """
    rows, others = (
        [{key: value for key, value in row.items() if not key.endswith("gap_nats")} for row in rows_without_times(each)]
        for each in (run, other)
    )
    assert rows == others and read_rows(run.rollouts_path) == read_rows(other.rollouts_path)
    weights = "model.safetensors"
    assert (run.merged_path / weights).read_bytes() == (other.merged_path / weights).read_bytes()


def test_one_call_gives_the_pools_of_the_rounds(prepared):
    """Steps of one to four groups need one to several rounds, and discard completions that have begun."""
    trainer, _ = train_stage.build(*prepared(*SMALL, "steps=1", "+rollout.vllm.max_num_seqs=40"))
    prompts, discarded, rounds = trainer.prompts, [], set()
    for groups in (1, 2, 3, 4, 1, 2, 1, 3):
        start = prompts.position
        expected = trainer.sample_in_rounds(groups)
        end, prompts.position = prompts.position, start
        (pool,) = trainer.sample_at_once(groups)
        assert prompts.position == end
        assert list(map(facts, pool.sampled)) == list(map(facts, expected.sampled))
        assert list(map(facts, pool.trained)) == list(map(facts, expected.trained))
        for group, other in zip(pool.sampled, expected.sampled, strict=True):
            scores, others = (torch.cat([torch.tensor(row) for row in item.logprobs]) for item in (group, other))
            torch.testing.assert_close(scores, others, atol=1e-5, rtol=0)
        discarded.append({name: pool.discarded[name] for name in DISCARDED})
        assert pool.metrics() == expected.metrics() | discarded[-1]
        assert pool.readable(9, "seed", [0]) == expected.readable(9, "seed", [0])
        assert not trainer.vllm_generation.llm.llm_engine.has_unfinished_requests()
        rounds.add(pool.rounds)
    assert len(rounds) > 1, "steps need different numbers of rounds"
    assert any(row["discarded_tokens"] for row in discarded)


@pytest.mark.exhaustive
def test_a_training_in_one_call_equals_one_in_rounds(shortest):
    runs = {}
    for name, is_continuous in (("rounds", False), ("at once", True), ("again", True)):
        runs[name], cfg = shortest(*SMALL, f"rollout.continuous={is_continuous}", runs=name)
        train_stage.train(runs[name], cfg)
    in_rounds, at_once = runs["rounds"], runs["at once"]
    assert at_once.name == in_rounds.name
    assert read_rows(at_once.rollouts_path) == read_rows(in_rounds.rollouts_path)
    for row, expected in zip(rows_without_times(at_once), rows_without_times(in_rounds), strict=True):
        assert row.keys() - set(DISCARDED) == expected.keys()
        exact = expected.keys() - set(ROUNDED)
        assert {key: row[key] for key in exact} == {key: expected[key] for key in exact}
        assert all(row[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-6) for key in ROUNDED)
    assert_equal(runs["again"], at_once)


@pytest.mark.exhaustive
def test_a_stop_during_decoding_resumes_to_the_same_bits(prepared, monkeypatch, request_stop):  # noqa: F811
    phases, write_phase = [], Run.write_phase

    def write(run, phase):
        write_phase(run, phase)
        phases.append((latest_step(run) + 1, phase))

    with monkeypatch.context() as patched:
        patched.setattr(Run, "write_phase", write)
        undisturbed, cfg = prepared(*SMALL, "steps=4", runs="undisturbed")
        train_stage.train(undisturbed, cfg)
    unfinished = tuple(f"sampling, {mixed} of 4" for mixed in (1, 2, 3))
    step, phase = next((step, phase) for step, phase in phases if step > 1 and phase.startswith(unfinished))
    run, cfg = prepared(*SMALL, "steps=4")
    request_stop(run, step, phase, deadline=time.time())
    with pytest.raises(Stopped):
        train_stage.train(run, cfg)
    assert latest_step(run) == step - 1
    run.stop_path.unlink()
    train_stage.train(run, cfg)
    assert_equal(run, undisturbed)
