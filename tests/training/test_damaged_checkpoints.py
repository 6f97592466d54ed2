"""Test that a training whose newest checkpoint is damaged goes on from the one before and ends with the same bits."""

import shutil

import pytest

from rlvr_sweeps.errors import Damaged
from rlvr_sweeps.files import read_json, read_rows, write_json
from rlvr_sweeps.runs.checkpoints import checkpoints, latest_complete_checkpoint, mark_complete
from rlvr_sweeps.runs.checksums import NAME
from rlvr_sweeps.training import train as train_stage
from tests.conftest import SHORTEST, prepare
from tests.runs.test_damage import flip_a_bit, tear, write_zeros

pytestmark = pytest.mark.slow
WEIGHTS = "model.safetensors"


class Interrupted(BaseException):
    """An interruption that the train stage does not catch."""


@pytest.fixture(scope="module")
def trainings(composer, three, tmp_path_factory):
    """Train once without a disturbance, and once until step 4 is saved; return both runs and their configuration."""
    undisturbed, cfg = prepare(composer, three, tmp_path_factory.mktemp("undisturbed"), "peft=lora", *SHORTEST)
    train_stage.train(undisturbed, cfg)
    interrupted, cfg = prepare(composer, three, tmp_path_factory.mktemp("interrupted"), "peft=lora", *SHORTEST)

    class InterruptingKeeper(train_stage.CheckpointKeeper):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise Interrupted

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(train_stage, "CheckpointKeeper", InterruptingKeeper)
        train_stage.train(interrupted, cfg)
    return undisturbed, interrupted, cfg


@pytest.fixture
def interrupted(trainings, composer, three, tmp_path):
    """Return a copy of the interrupted run; its checkpoints are those of steps 4 and 2."""
    run, _ = prepare(composer, three, tmp_path, "peft=lora", *SHORTEST)
    shutil.copytree(trainings[1].path, run.path, dirs_exist_ok=True)
    assert [path.name for path in checkpoints(run.checkpoints_path)] == ["checkpoint-4", "checkpoint-2"]
    return run


def remove(path):
    """Remove the file."""
    path.unlink()


DAMAGES = {
    "zeros in the adapter": ("adapter_model.safetensors", write_zeros),
    "zeros in the optimizer": ("optimizer.pt", write_zeros),
    "a flipped bit": ("adapter_model.safetensors", flip_a_bit),
    "a missing file": ("scheduler.pt", remove),
    "a cut file": ("optimizer.pt", tear),
    "damaged checksums": (NAME, write_zeros),
    "damaged sizes": ("complete.json", tear),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(damage, trainings, interrupted, capsys):
    undisturbed, _, cfg = trainings
    name, apply = DAMAGES[damage]
    apply(interrupted.checkpoints_path / "checkpoint-4" / name)
    capsys.readouterr()
    train_stage.train(interrupted, cfg)
    printed = capsys.readouterr().out
    assert f"checkpoint-4/{name} is damaged: " in printed and "The training goes on from checkpoint-2." in printed
    events = read_rows(interrupted.attempts_path)
    assert [event["resumed_from"] for event in events if event["event"] == "train"] == [None, "checkpoint-2"]
    (event,) = [event for event in events if event["event"] == "set_aside"]
    assert event["files"] == ["checkpoint-4"] and f"checkpoint-4/{name}" in event["why"]
    assert (interrupted.path / event["to"] / "checkpoint-4").is_dir()
    for file in (interrupted.merged_path / WEIGHTS, interrupted.adapter_path / "adapter_model.safetensors"):
        assert file.read_bytes() == (undisturbed.path / file.relative_to(interrupted.path)).read_bytes()
    assert [row["step"] for row in read_rows(interrupted.metrics_path)] == [1, 2, 3, 4, 5]
    assert read_rows(interrupted.reach_path) == read_rows(undisturbed.reach_path)


def test_with_no_whole_checkpoint_the_training_begins_again_and_says_so(trainings, interrupted, capsys):
    undisturbed, _, cfg = trainings
    for folder in checkpoints(interrupted.checkpoints_path):
        write_zeros(folder / "optimizer.pt")
    train_stage.train(interrupted, cfg)
    assert capsys.readouterr().out.count("The training goes on from step 0.") == 2
    assert (interrupted.merged_path / WEIGHTS).read_bytes() == (undisturbed.merged_path / WEIGHTS).read_bytes()


def test_a_checkpoint_of_a_version_without_checksums_is_used(trainings, interrupted):
    """Test complete.json with sizes alone, as earlier versions wrote it."""
    undisturbed, _, cfg = trainings
    for folder in checkpoints(interrupted.checkpoints_path):
        (folder / NAME).unlink()
        sizes = read_json(folder / "complete.json")
        write_json(folder / "complete.json", {name: size for name, size in sizes.items() if name != NAME})
    train_stage.train(interrupted, cfg)
    resumed = [row["resumed_from"] for row in read_rows(interrupted.attempts_path) if row["event"] == "train"]
    assert resumed == [None, "checkpoint-4"]
    assert (interrupted.merged_path / WEIGHTS).read_bytes() == (undisturbed.merged_path / WEIGHTS).read_bytes()


def test_a_checkpoint_that_differs_on_the_disk_is_not_complete_and_older_ones_stay(interrupted, monkeypatch):
    """Test a file that changes between its writing and its verification, as on a disk that loses a write."""
    from rlvr_sweeps.runs import checksums

    newest = interrupted.checkpoints_path / "checkpoint-6"
    shutil.copytree(interrupted.checkpoints_path / "checkpoint-4", newest)
    (newest / "complete.json").unlink()
    write = checksums.write_checksums

    def write_and_lose(folder):
        write(folder)
        write_zeros(folder / "optimizer.pt")

    monkeypatch.setattr(checksums, "write_checksums", write_and_lose)
    with pytest.raises(Damaged, match=r"checkpoint-6/optimizer\.pt is damaged: its SHA-256 differs"):
        mark_complete(newest)
    assert latest_complete_checkpoint(interrupted.checkpoints_path).name == "checkpoint-4"
