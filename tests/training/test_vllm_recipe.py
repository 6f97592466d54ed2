"""The paper's stack at a toy shape: the 1.5B's recipe through vLLM, ZeRO-2 with CPU offload, two ranks, evaluation by vLLM."""

import hashlib
import os
import signal
import subprocess
import time

import pytest

from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import all_runs
from tests.conftest import ROOT
from tests.toy import make_r1, write_problems
from tests.training.test_distributed import together, wait_until
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
    """The recipe's overrides at the toy's size: rewards of random weights are 0, so lengths give the gradient."""
    folder = tmp_path_factory.mktemp("toy")
    make_r1(folder / "r1")
    train, test = write_problems(folder / "train.jsonl", 40), write_problems(folder / "test.jsonl", 4, start=100)
    return (
        "model=r1_qwen_1_5b", f"model.path={folder}/r1", *ON_CPU, *EVALUATED_ON_CPU,
        f"data.path={train}", "data.problems=null", "benchmark=local", f"benchmark.local.path={test}",
        "benchmark.local.question=prompt", "benchmark.local.answer=solution", "benchmark.local.k=2", "evaluation.max_tokens=16",
        "distributed=zero2_offload", "distributed.processes=2", "batch_size=32", "rollout.max_tokens=96", "steps=4", "lr=1e-3",
        "training.save_every=2", "algo.overlong_buffer=90", "algo.sampling_rounds=2",
    )  # fmt: skip


def only(runs):
    (run,) = all_runs(runs)
    return run


def weights(run):
    return hashlib.sha256((run.merged_path / "model.safetensors").read_bytes()).hexdigest()


def test_the_recipe_runs_is_killed_and_resumes(launch, recipe, tmp_path):
    """kill -9 while vLLM decodes: the same command ends with the same bits as a run that was left alone."""
    launch(*recipe, runs=tmp_path / "whole")
    whole = only(tmp_path / "whole")
    rows = read_rows(whole.metrics_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["sync_gap_nats"] < 0.01 and all(abs(row["sampler_ratio_mean"] - 1) < 0.01 for row in rows)
    built = read_json(whole.record_path)["built"]
    assert (built["processes"], built["completions_per_step"], built["rollout.engine"]) == (2, 32, "vllm")
    assert read_json(whole.summary_path)["engine"] == "vllm" and len(read_rows(whole.samples_path("local"))) == 8
    assert read_rows(whole.reach_path)[-1]["reach"]["q_proj"] > 0

    process = subprocess.Popen(launch.command(*recipe, runs=tmp_path / "killed"), cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until(lambda: any(len(read_rows(run.metrics_path)) >= 3 for run in all_runs(tmp_path / "killed")))
    time.sleep(0.3)  # the fourth rollout has begun
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = only(tmp_path / "killed")
    wait_until(lambda: killed.state() == "lost")
    launch(*recipe, runs=tmp_path / "killed")
    starts = [row["resumed_from"] for row in read_rows(killed.attempts_path) if row["event"] == "train"]
    assert starts == [None, "checkpoint-2"]
    assert weights(killed) == weights(whole)
    assert read_rows(killed.samples_path("local")) == read_rows(whole.samples_path("local"))


def test_ranks_by_ddp_and_by_zero_are_one_process(composer, twelve, launch, tmp_path):
    """The same completions, rewards and losses of the same global batch, from one engine or from one per rank."""
    spec = ",".join(("lora", *ON_CPU))
    fewer = ("benchmark.tier1.k=1", *(f"~benchmark.tier{tier}" for tier in (2, 3, 4, 5)))
    launch(*overrides(composer, spec, twelve, "single", 1), *fewer, runs=tmp_path / "alone")
    wanted = read_rows(only(tmp_path / "alone").metrics_path)
    for kind in ("ddp", "zero2_offload"):
        result = together(kind, [spec], twelve, tmp_path)[spec]
        assert result["weights"][0] == result["weights"][1]
        for mine, one in zip(result["rows"], wanted, strict=True):
            assert mine["reward_mean"] == one["reward_mean"] and mine["loss"] == pytest.approx(one["loss"], abs=1e-4), kind
            assert mine["sampler_kl"] < 1e-5 and mine["sampler_ratio_mean"] == pytest.approx(1, abs=1e-3)


def test_log_probabilities_from_the_update_are_those_of_a_pass_of_their_own(launch, tmp_path):
    """Without dropout: the same importance weights, loss and gradient, one forward pass less; with several passes to a step."""
    small = (
        *ON_CPU, "steps=2", "batch_size=32", "rollout.max_tokens=40", "algo=grpo", "dropout=0", "benchmark.tier1.k=1",
        "training.per_device_batch_size=8", *(f"~benchmark.tier{tier}" for tier in (2, 3, 4, 5)),
    )  # fmt: skip
    found = {}
    for way, micro in (("once", "by_length"), ("once", "equal"), ("twice", "equal")):
        launch(*small, f"training.log_probabilities={way}", f"training.micro_batches={micro}", runs=tmp_path / way / micro)
        found[way, micro] = read_rows(only(tmp_path / way / micro).metrics_path)
    for here, plain in zip(found["once", "by_length"], found["twice", "equal"], strict=True):
        assert here["reward_mean"] == plain["reward_mean"]
        assert here["loss"] == pytest.approx(plain["loss"], abs=1e-5)
        assert here["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)
        assert here["sampler_kl"] == pytest.approx(plain["sampler_kl"], abs=1e-8)
        assert here["sampler_ratio_p99"] == pytest.approx(plain["sampler_ratio_p99"], abs=1e-5)
        assert here["logprobs_s"] == 0 < plain["logprobs_s"]
    assert [row["loss"] for row in found["once", "equal"]] == pytest.approx([row["loss"] for row in found["twice", "equal"]])


def test_runs_of_one_launch_leave_nothing_behind(launch, tmp_path):
    """Two vLLM runs one after another from one warm process, and the second alone: the same bits."""
    small = (
        *ON_CPU, "steps=2", "batch_size=16", "rollout.max_tokens=24", "algo=grpo", "benchmark.tier1.k=1",
        *(f"~benchmark.tier{tier}" for tier in (2, 3, 4, 5)),
    )  # fmt: skip
    launch("-m", "peft=dora,lora", *small, "hydra.launcher.workers=1", runs=tmp_path / "both")
    launch("peft=lora", *small, runs=tmp_path / "alone")
    alone = only(tmp_path / "alone")
    (after,) = (run for run in all_runs(tmp_path / "both") if run.name == alone.name)
    assert weights(after) == weights(alone)
    assert "RANK" not in os.environ
