"""Test the recipe of the 1.5B model at a small size: vLLM, ZeRO-2 with CPU offload, two ranks, evaluation by vLLM."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest

from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import Run, all_runs
from rlvr_sweeps.training import train as train_stage
from tests.conftest import ROOT
from tests.toy import make_r1, write_problems
from tests.training.test_distributed import train_by_two, wait_until
from tests.training.test_vllm_rollouts import ON_CPU
from tests.training.two_processes import overrides

pytestmark = pytest.mark.slow
pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

EVALUATED_ON_CPU = (
    "evaluation.engine=vllm", "+evaluation.vllm.kv_cache_memory_bytes=67108864", "+evaluation.vllm.enforce_eager=true",
    "+evaluation.vllm.max_num_batched_tokens=16384",
)  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Return the overrides of the recipe at a small size.

    The rewards of random weights are 0, so only the overlong punishment gives a gradient.
    """
    folder = tmp_path_factory.mktemp("toy")
    make_r1(folder / "r1")
    train, test = write_problems(folder / "train.jsonl", 40), write_problems(folder / "test.jsonl", 4, start=100)
    return (
        "model=r1_qwen_1_5b", f"model.path={folder}/r1", *ON_CPU, *EVALUATED_ON_CPU,
        f"data.path={train}", "data.problems=null", "benchmark=local", f"benchmark.local.path={test}",
        "benchmark.local.question=prompt", "benchmark.local.answer=solution", "benchmark.local.k=2", "evaluation.max_tokens=16",
        "distributed=zero2_offload", "distributed.processes=2", "batch_size=32", "rollout.max_tokens=96", "steps=4", "lr=1e-3",
        "signal_check=warn",  # the weights are random, so that all completions are wrong
        "rollout.check_every=0",  # the first step is compared all the same, after the signal check has sampled
        "training.save_every=2", "algo.overlong_buffer=90", "algo.sampling_rounds=2",
    )  # fmt: skip


@pytest.fixture(scope="module")
def recipe_run(recipe, tmp_path_factory):
    """Launch the recipe; return its run, trained and evaluated."""
    folder = tmp_path_factory.mktemp("recipe")
    command = [sys.executable, "launch.py", *recipe, f"runs_dir={folder}/runs", f"hydra.sweep.dir={folder}/launch"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=1800)
    return only_run(folder / "runs")


@pytest.fixture
def train(composer, tmp_path):
    """Return a function that trains a run in this process and returns its metrics."""

    def train(folder, *overrides):
        cfg = composer.point([*overrides, f"runs_dir={tmp_path}/{folder}"]).cfg
        run = Run.of(cfg)
        run.prepare(cfg)
        with mock.patch.dict(os.environ):
            train_stage.train(run, cfg)
        return read_rows(run.metrics_path)

    return train


def only_run(runs_dir):
    """Return the folder's single run."""
    (run,) = all_runs(runs_dir)
    return run


def weights(run):
    """Return the hash of the trained weights."""
    return hashlib.sha256((run.merged_path / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.xdist_group("recipe")
def test_the_recipe_trains_and_evaluates(recipe_run):
    rows = read_rows(recipe_run.metrics_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["sync_gap_nats"] < 0.01 and all(abs(row["sampler_ratio_mean"] - 1) < 0.01 for row in rows)
    built = read_json(recipe_run.record_path)["built"]
    assert (built["processes"], built["completions_per_step"], built["rollout.engine"]) == (2, 32, "vllm")
    assert read_json(recipe_run.summary_path)["engine"] == "vllm" and len(read_rows(recipe_run.samples_path("local"))) == 8
    assert rows[0]["sampling_gap_nats"] < 0.1 and read_json(recipe_run.record_path)["vllm"]["dtype"] == "bfloat16"
    reach = read_rows(recipe_run.reach_path)[-1]
    assert reach["reach"]["q_proj"] > 0 and reach["bfloat16_error"]["q_proj"] > 0
    assert read_json(recipe_run.summary_path)["bfloat16_error"] == reach["bfloat16_error"]["all"]


@pytest.mark.exhaustive
@pytest.mark.xdist_group("recipe")
def test_the_recipe_resumes_after_a_kill_to_equal_weights_and_samples(launch, recipe, recipe_run):
    """kill -9 while vLLM decodes: the same command ends with the same bits as an undisturbed run."""
    process = subprocess.Popen(launch.command(*recipe), cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until(lambda: any(len(read_rows(run.metrics_path)) >= 3 for run in all_runs(launch.runs)))
    time.sleep(0.3)  # the fourth rollout has begun
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_run = only_run(launch.runs)
    wait_until(lambda: killed_run.state() == "lost")
    launch(*recipe)
    starts = [row["resumed_from"] for row in read_rows(killed_run.attempts_path) if row["event"] == "train"]
    assert starts == [None, "checkpoint-2"]
    assert weights(killed_run) == weights(recipe_run)
    assert read_rows(killed_run.samples_path("local")) == read_rows(recipe_run.samples_path("local"))


@pytest.mark.parametrize(
    "kind, lag",
    [
        ("zero2_offload", 0),
        pytest.param("ddp", 0, marks=pytest.mark.exhaustive),
        pytest.param("ddp", 1, marks=pytest.mark.exhaustive),
    ],
)
def test_two_ranks_equal_one_process(composer, twelve, train, tmp_path, kind, lag):
    """Compare completions, rewards and losses of the same global batch, from one engine and from one engine per rank."""
    spec = ",".join(("lora", *ON_CPU, f"rollout.lag={lag}"))
    expected_rows = train("single", *overrides(composer, spec, twelve, "single", 1))
    result = train_by_two(kind, [spec], twelve, tmp_path)[spec]
    assert result["weights"][0] == result["weights"][1]
    for row, expected in zip(result["rows"], expected_rows, strict=True):
        assert row["reward_mean"] == expected["reward_mean"] and row["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert row["sampled_groups"] == expected["sampled_groups"]
        assert row["sampler_kl"] < 1e-5 and row["sampler_ratio_mean"] == pytest.approx(1, abs=1e-3)


def test_log_probabilities_from_the_update_equal_those_of_a_separate_pass(train):
    """Without dropout, importance weights, loss and gradient are equal with one forward pass less, also for several passes."""
    small = (
        *ON_CPU, "steps=2", "batch_size=32", "rollout.max_tokens=40", "algo=grpo", "dropout=0",
        "training.per_device_batch_size=8",
    )  # fmt: skip
    by_setting = {}
    for passes, cut in (("once", "by_length"), ("once", "equal"), ("twice", "equal")):
        settings = f"training.log_probabilities={passes}", f"training.micro_batches={cut}"
        by_setting[passes, cut] = train(f"{passes}-{cut}", *small, *settings)
    for row, expected in zip(by_setting["once", "by_length"], by_setting["twice", "equal"], strict=True):
        assert row["reward_mean"] == expected["reward_mean"]
        assert row["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
        assert row["sampler_kl"] == pytest.approx(expected["sampler_kl"], abs=1e-8)
        assert row["sampler_ratio_p99"] == pytest.approx(expected["sampler_ratio_p99"], abs=1e-5)
        assert row["logprobs_s"] == 0 < expected["logprobs_s"]
    losses = [row["loss"] for row in by_setting["twice", "equal"]]
    assert [row["loss"] for row in by_setting["once", "equal"]] == pytest.approx(losses, abs=1e-7)


def test_runs_of_one_launch_do_not_affect_each_other(launch, tmp_path):
    """Two vLLM runs one after another from one fork server, and the second in a separate launch: the same bits."""
    small = (
        *ON_CPU, "steps=2", "batch_size=16", "rollout.max_tokens=24", "algo=grpo", "analysis=none", "benchmark.tier1.k=1",
        *(f"~benchmark.tier{tier}" for tier in (2, 3, 4, 5)),
    )  # fmt: skip
    launch("-m", "peft=dora,lora", *small, "hydra.launcher.workers=1", runs=tmp_path / "both")
    launch("peft=lora", *small, runs=tmp_path / "alone")
    alone = only_run(tmp_path / "alone")
    (second,) = (run for run in all_runs(tmp_path / "both") if run.name == alone.name)
    assert weights(second) == weights(alone)
