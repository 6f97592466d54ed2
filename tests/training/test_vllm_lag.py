"""Test rollout.lag=1 with vLLM on the CPU: every second step trains on samples of the policy before the last update."""

import time

import pytest

from rlvr_sweeps.errors import Stopped
from rlvr_sweeps.files import read_rows
from rlvr_sweeps.training import train as train_stage
from tests.training.test_stopping import request_stop  # noqa: F401
from tests.training.test_vllm_continuous import assert_equal
from tests.training.test_vllm_rollouts import ON_CPU

pytestmark = pytest.mark.slow
pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

LAGGED = (*ON_CPU, "peft=lora", "lr=1e-2", "dropout=0", "analysis=none", "training.samples_per_step=64", "rollout.lag=1")
FROM_SAMPLING = ("step", "prompt", "text", "reward", "tokens")  # columns of rollouts.jsonl


def completions(run, step):
    """Return the step's completions, in a fixed order."""
    rows = (row for row in read_rows(run.rollouts_path) if row["step"] == step)
    return sorted(tuple(row[column] for column in FROM_SAMPLING) for row in rows)


def test_the_second_step_trains_on_samples_of_the_policy_before_the_first(prepared):
    """A run with next to no learning rate tells what the first policy samples. Three steps: the last call samples for one."""
    runs = {}
    for name, settings in {"lagged": (), "fixed": ("rollout.lag=0", "lr=1e-30"), "exact": ("rollout.lag=0",)}.items():
        runs[name], cfg = prepared(*LAGGED, "algo=grpo", "steps=3", *settings, runs=name)
        train_stage.train(runs[name], cfg)
    lagged, fixed, exact = (runs[name] for name in ("lagged", "fixed", "exact"))
    assert completions(lagged, 1) == completions(fixed, 1) == completions(exact, 1)
    assert completions(lagged, 2) == completions(fixed, 2) != completions(exact, 2)
    assert completions(lagged, 3) != completions(fixed, 3)
    rows, others = read_rows(lagged.metrics_path), read_rows(exact.metrics_path)
    assert rows[0]["loss"] == others[0]["loss"] and rows[0]["grad_norm"] == others[0]["grad_norm"]
    on_policy, off_policy = [row["sampler_kl"] for row in (*others, rows[0], rows[2])], rows[1]["sampler_kl"]
    assert off_policy > 1000 * max(on_policy), "the importance weights are those of the policy that sampled"
    assert [row["sampled_groups"] for row in rows] == [4, 4, 4] and rows[1]["sync_s"] == rows[1]["rollout_s"] == 0


@pytest.mark.parametrize("step", [1, 2])
def test_a_stop_between_the_two_steps_of_a_call_resumes_to_the_same_bits(prepared, request_stop, step):  # noqa: F811
    """Stop after the first step, or within the second, which is repeated: the checkpoint holds the second step's groups."""
    settings = (*LAGGED, "algo=dapo", "steps=4")
    undisturbed, cfg = prepared(*settings, runs="undisturbed")
    train_stage.train(undisturbed, cfg)
    run, cfg = prepared(*settings)
    request_stop(run, step, "updating", deadline=None if step == 1 else time.time())
    with pytest.raises(Stopped):
        train_stage.train(run, cfg)
    assert len(read_rows(run.metrics_path)) == 1
    run.stop_path.unlink()
    train_stage.train(run, cfg)
    assert_equal(run, undisturbed)
    assert {row["zero_std_share"] for row in read_rows(run.metrics_path)} != {0.0}, "some groups were not mixed"
