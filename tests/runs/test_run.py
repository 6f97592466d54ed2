"""Test the directory of a run: states, locks, and files that are incomplete or edited."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.files import append_rows, as_yaml, read_json, read_rows, write_json
from rlvr_sweeps.runs.checkpoints import checkpoints, latest_complete_checkpoint, mark_complete
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.reading import status_of

HOLD = """
import sys, time
from pathlib import Path
from rlvr_sweeps.runs.directory import Run
with Run(Path(sys.argv[1])).claim() as claimed:
    print(claimed, flush=True)
    time.sleep(60)
"""
WRITE = """
import sys
from pathlib import Path
from rlvr_sweeps.files import write_json
for value in range(200):
    write_json(Path(sys.argv[1]), [value] * 1000)
"""


@pytest.fixture
def run(point):
    """Make the directory of a run without analysis; return the run."""
    cfg = point("analysis=none")
    prepared_run = Run.of(cfg)
    prepared_run.prepare(cfg)
    return prepared_run


def finish(run, stage="train"):
    """Write the files that a finished stage leaves."""
    run.log_event("start")
    write_json(run.record_path if stage == "train" else run.summary_path, {"some": "number"})
    if stage == "train":
        write_json(run.merged_path / "config.json", {})
    run.finish(stage, run.config(), 1.0)


def test_the_state_follows_from_the_files(run, point):
    assert Run.of(point("seed=1")).state() == "new"
    assert run.state() == "new"
    run.log_event("start")
    assert run.state() == "lost"
    finish(run)
    assert run.state() == "lost"
    finish(run, "evaluate")
    assert run.state() == "done"
    assert run.state(point("evaluation.seed=1", "analysis=none")) == "stale"
    assert run.state(point()) == "stale"
    write_json(run.failure_path, {"error": "x"})
    assert run.state() == "done"
    run.summary_path.unlink()
    assert run.state() == "failed"


def test_a_new_training_makes_the_evaluation_stale(run):
    finish(run)
    finish(run, "evaluate")
    time.sleep(0.01)
    finish(run)
    assert run.state() == "stale"


def test_a_run_without_its_model_is_not_trained(run):
    finish(run)
    finish(run, "evaluate")
    (run.merged_path / "config.json").unlink()
    assert run.state() != "done"


@pytest.mark.parametrize("name", ["summary.json", "stages/train.json", "stages/evaluate.json", "train.json"])
def test_a_run_with_a_cut_file_is_unreadable_and_no_file_is_changed(run, name):
    finish(run)
    finish(run, "evaluate")
    text = (run.path / name).read_text()
    (run.path / name).write_text(text[: len(text) // 2])
    contents = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(Damaged, match=name):
        run.state()
    assert status_of(run).state == "unreadable"
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == contents


def test_an_edited_configuration_is_refused(run):
    run.config_path.write_text(run.config_path.read_text().replace("lr: 0.001", "lr: 0.002"))
    with pytest.raises(Refused, match="it was edited"):
        run.config()
    with pytest.raises(Refused, match="it was edited"):
        run.state()


def test_a_comment_in_the_configuration_does_not_count_as_an_edit(run):
    run.config_path.write_text("# a comment\n" + run.config_path.read_text())
    assert run.state() == "new"


def test_one_process_claims_a_run_and_kill_9_frees_it(run):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, run.path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "True\n"
    with run.claim() as claimed:
        assert not claimed
    assert run.state() == "running"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with run.claim() as claimed:
        assert claimed
    assert run.state() != "running"


def test_read_rows_skips_an_incomplete_last_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_rows(path) == [{"step": 1}, {"step": 2}]
    assert read_rows(tmp_path / "none.jsonl") == []
    assert read_json(tmp_path / "none.json") is None


def test_append_rows_removes_an_incomplete_last_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [{"row": 1}])
    with path.open("a") as file:
        file.write('{"row": 2, "te')
    append_rows(path, [{"row": 3}, {"row": 4}])
    assert [row["row"] for row in read_rows(path)] == [1, 3, 4]
    path.write_text('{"ro')
    append_rows(path, [{"row": 5}])
    assert read_rows(path) == [{"row": 5}]


@given(st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()))
@example({"a": "1e-5", "b": "yes", "c": "null", "d": "2024-01-01", "e": "12:30", "f": "0x1F", "g": "a: b # c", "h": "~ é\n"})
def test_a_configuration_is_read_as_it_was_written(cfg):
    assume("$" not in str(cfg) and "???" not in str(cfg))  # OmegaConf's syntax, which a resolved configuration does not contain
    assert OmegaConf.to_container(OmegaConf.create(as_yaml({"cfg": cfg})))["cfg"] == cfg


def test_a_reader_sees_complete_files_during_a_write(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, list(range(1000)))
    writer = subprocess.Popen([sys.executable, "-c", WRITE, path])
    while writer.poll() is None:
        assert len(json.loads(path.read_text())) == 1000


def test_an_incomplete_checkpoint_is_not_the_latest(tmp_path):
    for step in (5, 10, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"x" * step)
        if step != 100:
            mark_complete(folder)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-10", "checkpoint-5"]
    assert latest_complete_checkpoint(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-10" / "weights").write_bytes(b"x")
    assert latest_complete_checkpoint(tmp_path).name == "checkpoint-5"


def test_set_aside_keeps_the_replaced_results(run):
    finish(run, "evaluate")
    run.set_aside([run.summary_path], "other settings")
    assert not run.summary_path.exists()
    assert [path.name for path in (run.path / "old").rglob("*.json")] == ["summary.json"]
