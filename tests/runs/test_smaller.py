"""Out of GPU memory: the same run with smaller forward passes. No GPU is needed to be told that one is full, only its error."""

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

SAID = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB."


@pytest.fixture
def run(composer, tmp_path):
    def make(*overrides, folder="runs"):
        asked = ("batch_size=24", "training.per_device_batch_size=12", *overrides, f"runs_dir={tmp_path / folder}")
        cfg = composer.point(asked).cfg
        found = Run.of(cfg)
        found.prepare(cfg)
        found.log_path("train").parent.mkdir(exist_ok=True)
        return found

    return make


def test_half_as_many_down_to_one(run):
    found = run()
    log = found.log_path("train")
    log.write_text(SAID)
    reached = []
    while decided := reduce_batch_after_oom(found, "train", 0):
        assert "out of memory" in decided
        reached.append(with_fitting_batch(found, found.config())["training"]["per_device_batch_size"])
    assert reached == [6, 3, 1]
    assert not found.per_device_path.exists(), "smaller passes were no cure: the next launch begins as asked"
    assert found.config()["training"]["per_device_batch_size"] == 12, "what was asked stays what was asked"


def test_only_where_the_batch_is_still_cut_evenly(run):
    found = run("batch_size=80", "training.per_device_batch_size=40", "distributed=ddp", "distributed.processes=2")
    found.log_path("train").write_text(SAID)
    assert reduce_batch_after_oom(found, "train", 0) and read_json(found.per_device_path)["fits"] == 20
    assert reduce_batch_after_oom(found, "train", 0) and read_json(found.per_device_path)["fits"] == 10


def test_other_failures_and_earlier_tries_change_nothing(run):
    found = run()
    log = found.log_path("train")
    log.write_text(f"{SAID}\nValueError: no\n")
    assert reduce_batch_after_oom(found, "train", len(SAID) + 1) is None
    assert reduce_batch_after_oom(found, "evaluate", 0) is None and not found.per_device_path.exists()


def test_what_is_asked_anew_counts(run):
    found = run()
    found.log_path("train").write_text(SAID)
    assert reduce_batch_after_oom(found, "train", 0)
    cfg = found.config()
    assert with_fitting_batch(found, cfg)["training"]["per_device_batch_size"] == 6
    cfg["training"]["per_device_batch_size"] = 2
    assert with_fitting_batch(found, cfg)["training"]["per_device_batch_size"] == 2
    cfg["training"]["per_device_batch_size"], cfg["distributed"]["processes"] = 12, 2
    assert with_fitting_batch(found, cfg)["training"]["per_device_batch_size"] == 12


BRIEF = (
    "rollout.max_tokens=24", "dropout=0", "rollout.group_size=4", "benchmark.tier1.k=1", "analysis=none",
    *(f"~benchmark.tier{tier}" for tier in (2, 3, 4, 5)),
)  # fmt: skip


def full_above(rows, found, monkeypatch, after=0):
    """A run whose update raises what CUDA raises on passes of more than `rows` rows, `after` some steps; stages are forked."""
    real = train_stage.RlvrTrainer._get_per_token_logps_and_entropies

    def limited(self, model, ids, *rest, **more):
        if len(ids) > rows and self.state.global_step >= after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return real(self, model, ids, *rest, **more)

    monkeypatch.setattr(train_stage.RlvrTrainer, "_get_per_token_logps_and_entropies", limited)

    def start(stage, which):
        def work():
            run_stage(stage, which)
            return 0

        return os.waitpid(fork(work), 0)[1]

    return supervise(found, start)


@pytest.mark.slow
def test_the_run_goes_on_with_smaller_passes_and_is_the_same(run, monkeypatch):
    small = (*BRIEF, "steps=2", "training.micro_batches=equal")
    wanted = run(*small)
    train_stage.train(wanted, wanted.config())
    rows = read_rows(wanted.metrics_path)
    found = run(*small, folder="other")
    assert full_above(6, found, monkeypatch) == 0
    again = [row for row in read_rows(found.attempts_path) if row["event"] == "again"]
    assert len(again) == 1 and "12 completions per forward pass: 6" in again[0]["why"]
    assert not found.failure_path.exists() and found.state() == "done"
    for mine, one in zip(read_rows(found.metrics_path), rows, strict=True):
        assert mine["reward_mean"] == one["reward_mean"] and mine["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert json.loads(found.record_path.read_text())["built"]["completions_per_step"] == 24


@pytest.mark.slow
def test_memory_that_runs_out_later_is_met_from_the_checkpoint(run, monkeypatch):
    """Steps cut by length, as by default: the passes after the checkpoint hold half the positions, the run is the same."""
    small = (*BRIEF, "steps=4", "training.save_every=2")
    wanted = run(*small)
    train_stage.train(wanted, wanted.config())
    found = run(*small, folder="other")
    assert full_above(16, found, monkeypatch, after=3) == 0 and found.state() == "done"
    attempts = read_rows(found.attempts_path)
    assert [row["resumed_from"] for row in attempts if row["event"] == "train"] == [None, "checkpoint-2"]
    assert [row["why"].count("per forward pass: 6") for row in attempts if row["event"] == "again"] == [1]
    for mine, one in zip(read_rows(found.metrics_path), read_rows(wanted.metrics_path), strict=True):
        assert mine["reward_mean"] == one["reward_mean"] and mine["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert mine["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_what_does_not_fit_one_completion_fails_and_says_why(run, monkeypatch):
    found = run("steps=2", "rollout.max_tokens=24", "rollout.group_size=4", "training.micro_batches=equal")
    assert full_above(0, found, monkeypatch) == FAILED
    assert "out of memory" in read_json(found.failure_path)["error"] and not found.per_device_path.exists()


@pytest.mark.slow
def test_the_dry_step_leaves_nothing_behind(run, monkeypatch):
    shapes, weights = [], {}
    real = train_stage.RlvrTrainer._get_per_token_logps_and_entropies

    def noting(self, model, ids, *rest, **more):
        shapes.append(tuple(ids.shape))
        return real(self, model, ids, *rest, **more)

    monkeypatch.setattr(train_stage.RlvrTrainer, "_get_per_token_logps_and_entropies", noting)
    for wanted in ("never", "always"):
        shapes.clear()
        small = ("steps=2", "rollout.max_tokens=24", "rollout.group_size=4")
        found = run(*small, f"training.worst_case_first={wanted}", folder=wanted)
        train_stage.train(found, found.config())
        events = [row["event"] for row in read_rows(found.attempts_path)]
        assert ("worst_case" in events) == (wanted == "always")
        weights[wanted] = (found.merged_path / "model.safetensors").read_bytes()
    limit = found.config()["data"]["max_prompt_tokens"] + 24
    assert shapes[0] == (12, limit) and all(width < limit for _, width in shapes[1:])
    assert weights["never"] == weights["always"]


def test_only_where_there_is_a_gpu_by_default(point):
    assert point()["training"]["worst_case_first"] == "gpu"
