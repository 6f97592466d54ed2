"""Test that a training without enough GPU memory continues as the same run with smaller forward passes.

The tests raise the error of a full GPU and need no GPU.
"""

import json
import os

import pytest
import torch

from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.launching.fork_server import fork
from rlvr_sweeps.launching.stages import FAILED, run_stage, supervise
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.failures import reduce_batch_after_oom, with_fitting_batch
from rlvr_sweeps.training import train as train_stage

OOM_MESSAGE = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB."


@pytest.fixture
def make_run(composer, tmp_path):
    """Return a function that makes the directory of a run with 12 completions per forward pass and returns the run."""

    def make(*overrides, folder="runs"):
        size = ("batch_size=24", "training.per_device_batch_size=12")
        cfg = composer.point([*size, *overrides, f"runs_dir={tmp_path / folder}"]).cfg
        run = Run.of(cfg)
        run.prepare(cfg)
        run.log_path("train").parent.mkdir(exist_ok=True)
        return run

    return make


def test_each_out_of_memory_error_halves_the_batch_down_to_one(make_run):
    run = make_run()
    log = run.log_path("train")
    log.write_text(OOM_MESSAGE)
    sizes = []
    while sentence := reduce_batch_after_oom(run, "train", 0):
        assert "out of memory" in sentence
        sizes.append(with_fitting_batch(run, run.config())["training"]["per_device_batch_size"])
    assert sizes == [6, 3, 1]
    assert not run.per_device_path.exists(), "no size fits: the next launch starts with the configured size"
    assert run.config()["training"]["per_device_batch_size"] == 12, "the stored configuration is unchanged"


def test_only_sizes_that_divide_the_batch_are_used(make_run):
    run = make_run("batch_size=80", "training.per_device_batch_size=40", "distributed=ddp", "distributed.processes=2")
    run.log_path("train").write_text(OOM_MESSAGE)
    assert reduce_batch_after_oom(run, "train", 0) and read_json(run.per_device_path)["fits"] == 20
    assert reduce_batch_after_oom(run, "train", 0) and read_json(run.per_device_path)["fits"] == 10


def test_other_failures_and_the_output_of_earlier_tries_change_nothing(make_run):
    run = make_run()
    log = run.log_path("train")
    log.write_text(f"{OOM_MESSAGE}\nValueError: no\n")
    assert reduce_batch_after_oom(run, "train", len(OOM_MESSAGE) + 1) is None
    assert reduce_batch_after_oom(run, "evaluate", 0) is None and not run.per_device_path.exists()


def test_a_new_configured_size_replaces_the_reduced_size(make_run):
    run = make_run()
    run.log_path("train").write_text(OOM_MESSAGE)
    assert reduce_batch_after_oom(run, "train", 0)
    cfg = run.config()
    assert with_fitting_batch(run, cfg)["training"]["per_device_batch_size"] == 6
    cfg["training"]["per_device_batch_size"] = 2
    assert with_fitting_batch(run, cfg)["training"]["per_device_batch_size"] == 2
    cfg["training"]["per_device_batch_size"], cfg["distributed"]["processes"] = 12, 2
    assert with_fitting_batch(run, cfg)["training"]["per_device_batch_size"] == 12


SHORT = (
    "rollout.max_tokens=24", "dropout=0", "rollout.group_size=4", "benchmark.tier1.k=1", "analysis=none",
    *(f"~benchmark.tier{tier}" for tier in (2, 3, 4, 5)),
)  # fmt: skip


def run_with_memory_for(rows, run, monkeypatch, after=0):
    """Run the stages in forked processes and return the status; passes of more than `rows` rows raise CUDA's error.

    The error is raised only when `after` steps are complete.
    """
    original = train_stage.RlvrTrainer._get_per_token_logps_and_entropies

    def limited(self, model, ids, *arguments, **options):
        if len(ids) > rows and self.state.global_step >= after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return original(self, model, ids, *arguments, **options)

    monkeypatch.setattr(train_stage.RlvrTrainer, "_get_per_token_logps_and_entropies", limited)

    def start(stage, run):
        def work():
            run_stage(stage, run)
            return 0

        return os.waitpid(fork(work), 0)[1]

    return supervise(run, start)


@pytest.mark.slow
def test_the_run_continues_with_smaller_passes_and_equal_results(make_run, monkeypatch):
    small = (*SHORT, "steps=2", "training.micro_batches=equal")
    expected_run = make_run(*small)
    train_stage.train(expected_run, expected_run.config())
    expected_rows = read_rows(expected_run.metrics_path)
    run = make_run(*small, folder="limited")
    assert run_with_memory_for(6, run, monkeypatch) == 0
    restarts = [row for row in read_rows(run.attempts_path) if row["event"] == "again"]
    assert len(restarts) == 1 and "12 completions per forward pass: 6" in restarts[0]["why"]
    assert not run.failure_path.exists() and run.state() == "done"
    for row, expected in zip(read_rows(run.metrics_path), expected_rows, strict=True):
        assert row["reward_mean"] == expected["reward_mean"] and row["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    assert json.loads(run.record_path.read_text())["built"]["completions_per_step"] == 24


@pytest.mark.slow
def test_a_run_out_of_memory_at_a_later_step_continues_from_its_checkpoint(make_run, monkeypatch):
    """Steps are cut by length, the default. After the checkpoint a pass has half as many positions; the results are equal."""
    small = (*SHORT, "steps=4", "training.save_every=2")
    expected_run = make_run(*small)
    train_stage.train(expected_run, expected_run.config())
    run = make_run(*small, folder="limited")
    assert run_with_memory_for(16, run, monkeypatch, after=3) == 0 and run.state() == "done"
    attempts = read_rows(run.attempts_path)
    assert [row["resumed_from"] for row in attempts if row["event"] == "train"] == [None, "checkpoint-2"]
    assert [row["why"].count("per forward pass: 6") for row in attempts if row["event"] == "again"] == [1]
    for row, expected in zip(read_rows(run.metrics_path), read_rows(expected_run.metrics_path), strict=True):
        assert row["reward_mean"] == expected["reward_mean"] and row["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_a_run_whose_single_completion_does_not_fit_fails_with_the_error(make_run, monkeypatch):
    run = make_run("steps=2", "rollout.max_tokens=24", "rollout.group_size=4", "training.micro_batches=equal")
    assert run_with_memory_for(0, run, monkeypatch) == FAILED
    assert "out of memory" in read_json(run.failure_path)["error"] and not run.per_device_path.exists()


@pytest.mark.slow
def test_the_worst_case_step_does_not_change_the_weights(make_run, monkeypatch):
    shapes, weights = [], {}
    original = train_stage.RlvrTrainer._get_per_token_logps_and_entropies

    def recording(self, model, ids, *arguments, **options):
        shapes.append(tuple(ids.shape))
        return original(self, model, ids, *arguments, **options)

    monkeypatch.setattr(train_stage.RlvrTrainer, "_get_per_token_logps_and_entropies", recording)
    for setting in ("never", "always"):
        shapes.clear()
        small = ("steps=2", "rollout.max_tokens=24", "rollout.group_size=4")
        run = make_run(*small, f"training.worst_case_first={setting}", folder=setting)
        train_stage.train(run, run.config())
        events = [row["event"] for row in read_rows(run.attempts_path)]
        assert ("worst_case" in events) == (setting == "always")
        weights[setting] = (run.merged_path / "model.safetensors").read_bytes()
    limit = run.config()["data"]["max_prompt_tokens"] + 24
    assert shapes[0] == (12, limit) and all(width < limit for _, width in shapes[1:])
    assert weights["never"] == weights["always"]


def test_the_worst_case_step_is_by_default_only_on_gpus(point):
    assert point()["training"]["worst_case_first"] == "gpu"
