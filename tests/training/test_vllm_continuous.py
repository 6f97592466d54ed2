"""Test with vLLM on the CPU that one call of the engine gives the groups, metrics and weights of sampling in rounds."""

import pytest

from rlvr_sweeps.files import read_rows
from rlvr_sweeps.training import train as train_stage
from tests.training.test_vllm_rollouts import ON_CPU

pytestmark = pytest.mark.slow
pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

SMALL = (*ON_CPU, "peft=lora", "algo=dapo", "analysis=none", "training.samples_per_step=64")
# vLLM's products depend on the shape of the batch in their last bits, so its log-probabilities do, and what follows from them.
ROUNDED = ("sampler_ratio_mean", "sampler_ratio_p99", "sampler_kl", "entropy", "grad_norm", "loss", "sampling_gap_nats")
DISCARDED = ("discarded_completions", "discarded_tokens")


def rows_of(run):
    """Return the rows of metrics.jsonl without the columns of seconds and of what was discarded."""
    return [
        {key: value for key, value in row.items() if not key.endswith("_s") and key not in DISCARDED}
        for row in read_rows(run.metrics_path)
    ]


def test_one_call_gives_the_groups_and_metrics_of_the_rounds(shortest):
    """The first of the three problems is never solved, so that some steps need several rounds and others discard groups."""
    runs = {}
    for is_continuous in (False, True):
        run, cfg = shortest(*SMALL, f"rollout.continuous={is_continuous}", runs=f"continuous-{is_continuous}")
        train_stage.train(run, cfg)
        runs[is_continuous] = run
    in_rounds, at_once = runs[False], runs[True]
    assert at_once.name == in_rounds.name
    rows = read_rows(at_once.metrics_path)
    print([(row["sampling_rounds"], row["discarded_completions"], row["discarded_tokens"]) for row in rows])
    assert read_rows(at_once.rollouts_path) == read_rows(in_rounds.rollouts_path)
    for row, expected in zip(rows_of(at_once), rows_of(in_rounds), strict=True):
        assert row.keys() == expected.keys()
        assert {key: row[key] for key in row if key not in ROUNDED} == {key: expected[key] for key in row if key not in ROUNDED}
        assert all(row[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-6) for key in ROUNDED)
    assert any(row["sampling_rounds"] > 1 for row in rows) and any(row["discarded_tokens"] for row in rows)
