"""Test that a training that is asked to stop saves in time, within a step too, and resumes to an undisturbed run's bits."""

import time

import pytest

from rlvr_sweeps.errors import Stopped
from rlvr_sweeps.files import read_rows, write_json
from rlvr_sweeps.runs.checkpoints import checkpoints
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.reading import latest_step
from rlvr_sweeps.training import train as train_stage

pytestmark = pytest.mark.slow
# Several forward passes in a step, and on these three problems several sampling rounds in some steps.
SMALL = ("training.per_device_batch_size=4", "algo=dapo", "analysis=none")


@pytest.fixture
def request_stop(monkeypatch):
    """Return a function that makes a run's trainer see a stop request when it begins a phase of a step for the first time."""

    def request(run, step, phase, deadline):
        write_phase = Run.write_phase

        def write(self, current):
            write_phase(self, current)
            if self == run and current.startswith(phase) and latest_step(run) == step - 1 and not run.saved_path.exists():
                write_json(run.stop_path, {"signal": "SIGUSR2", "deadline": deadline})
                run.saved_path.write_text("1")  # the request comes once

        monkeypatch.setattr(Run, "write_phase", write)

    return request


def rows_without_times(run):
    """Return the rows of metrics.jsonl without the columns of seconds."""
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in read_rows(run.metrics_path)]


def assert_equal(run, undisturbed):
    """Assert that two runs have the same rows, completions, reach and weights, to the bit."""
    assert rows_without_times(run) == rows_without_times(undisturbed)
    assert read_rows(run.rollouts_path) == read_rows(undisturbed.rollouts_path)
    assert read_rows(run.reach_path) == read_rows(undisturbed.reach_path)
    weights = "model.safetensors"
    assert (run.merged_path / weights).read_bytes() == (undisturbed.merged_path / weights).read_bytes()


@pytest.mark.parametrize("phase", ["sampling round 2", "updating"])
@pytest.mark.parametrize("method", ["dora", pytest.param("adalora", marks=pytest.mark.exhaustive), "full"])
def test_a_stop_within_a_step_saves_the_step_before_and_loses_only_the_begun_one(shortest, request_stop, method, phase):
    undisturbed, cfg = shortest(f"peft={method}", *SMALL, runs="undisturbed")
    train_stage.train(undisturbed, cfg)
    rounds = [row["sampling_rounds"] for row in read_rows(undisturbed.metrics_path)]
    step = next(step for step in (4, 2) if phase == "updating" or rounds[step - 1] > 1)  # the step before is an odd one
    run, cfg = shortest(f"peft={method}", *SMALL)
    request_stop(run, step, phase, deadline=time.time())
    with pytest.raises(Stopped):
        train_stage.train(run, cfg)
    kept = [f"checkpoint-{saved}" for saved in (step - 1, step - 2) if saved]  # the last one, and the one before
    assert [path.name for path in checkpoints(run.checkpoints_path)] == kept
    assert len(read_rows(run.metrics_path)) == step - 1
    run.stop_path.unlink()
    train_stage.train(run, cfg)
    assert_equal(run, undisturbed)


def test_a_step_that_ends_before_the_deadline_is_completed(shortest, request_stop):
    run, cfg = shortest("peft=lora", *SMALL)
    request_stop(run, 3, "updating", deadline=time.time() + 10_000)
    with pytest.raises(Stopped):
        train_stage.train(run, cfg)
    assert [path.name for path in checkpoints(run.checkpoints_path)] == ["checkpoint-3", "checkpoint-2"]


def test_a_stop_in_the_first_step_has_nothing_to_save(shortest, request_stop):
    run, cfg = shortest("peft=lora", *SMALL)
    request_stop(run, 1, "updating", deadline=time.time())
    with pytest.raises(Stopped):
        train_stage.train(run, cfg)
    assert checkpoints(run.checkpoints_path) == [] and read_rows(run.metrics_path) == []


def test_checkpoints_by_time_do_not_change_the_result(shortest, request_stop):
    """With no minute between checkpoints each step has one, and reach.jsonl has rows of the regular ones only."""
    undisturbed, cfg = shortest("peft=lora", *SMALL, "training.save_minutes=null", runs="undisturbed")
    train_stage.train(undisturbed, cfg)
    run, cfg = shortest("peft=lora", *SMALL, "training.save_minutes=0", "training.save_every=4")
    request_stop(run, 2, "updating", deadline=time.time())
    with pytest.raises(Stopped):
        train_stage.train(run, cfg)
    assert [path.name for path in checkpoints(run.checkpoints_path)] == ["checkpoint-1"]
    run.stop_path.unlink()
    train_stage.train(run, cfg)
    assert [row["step"] for row in read_rows(run.reach_path)] == [4, 5]
    assert rows_without_times(run) == rows_without_times(undisturbed)
