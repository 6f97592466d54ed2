"""Test that rlvr status prints one line per run at every width of the terminal."""

import io

import pytest
from rich.console import Console

from rlvr_sweeps.files import write_json
from rlvr_sweeps.launching import status
from rlvr_sweeps.launching.slurm import queue


@pytest.mark.parametrize("width", [60, 140])
def test_one_line_per_run(evaluated, point, tmp_path, width):
    done, failed = evaluated("peft=lora"), evaluated("peft=dora")
    write_json(failed.failure_path, {"stage": "train", "error": "ValueError: no", "traceback": "", "time": 0.0})
    failed.stage_path("train").unlink()
    lost = evaluated("peft=pissa")
    write_json(lost.submission_path, {"stages": {"train": {"job": "17"}, "evaluate": {"job": "18"}}})
    lost.log_event("start", node_name="a-node-with-a-long-name.of.a.cluster.somewhere.in.the.basement")
    text = io.StringIO()
    status.show(tmp_path / "runs", Console(file=text, width=width))
    lines = text.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert [line.split()[0][:10] for line in lines[1:4]] == ["tiny-dora-", "tiny-lora-", "tiny-pissa"]
    if width == 140:
        assert [line.split()[1] for line in lines[1:4]] == ["failed", "done", "done"] and done.name in lines[2]
    assert lines[-2].endswith("ValueError: no") and lines[-1] == "3 runs: 2 done, 1 failed"


def test_a_folder_without_runs(tmp_path):
    text = io.StringIO()
    status.show(tmp_path, Console(file=text, width=80))
    assert text.getvalue().strip() == "run  state  step  reward  accuracy %\nno runs"


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Return a function that puts a squeue with the given shell commands in front of the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def write(commands):
        (folder / "squeue").write_text(f"#!/bin/bash\n{commands}\n")
        (folder / "squeue").chmod(0o755)

    return write


def shown(runs_dir):
    """Return what `rlvr status` prints."""
    text = io.StringIO()
    status.show(runs_dir, Console(file=text, width=140))
    return text.getvalue()


@pytest.mark.parametrize(
    ("commands", "reason"),
    [
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "Unable to contact slurm controller"),
        ("exec sleep 60", "squeue did not answer within 0.5 s"),
    ],
)
def test_a_submitted_run_is_unknown_while_slurm_does_not_answer(evaluated, tmp_path, squeue, monkeypatch, commands, reason):
    monkeypatch.setattr(queue, "SHORT_TIMEOUT_S", 0.5)
    evaluated("peft=lora")
    submitted = evaluated("peft=dora")
    submitted.stage_path("train").unlink()
    write_json(submitted.submission_path, {"stages": {"train": {"job": "17"}, "evaluate": {"job": "18"}}})
    submitted.log_event("start")
    squeue(commands)
    printed = shown(tmp_path / "runs")
    assert "Slurm does not answer: squeue" in printed and reason in " ".join(printed.split())
    assert printed.splitlines()[-1] == "2 runs: 1 done, 1 unknown"
    squeue("echo '17|RUNNING|None|node1'")
    assert "1 done, 1 running" in shown(tmp_path / "runs")
    squeue("true")
    assert "1 done, 1 lost" in shown(tmp_path / "runs")


def test_watching_goes_on_while_slurm_does_not_answer(evaluated, tmp_path, squeue):
    submitted = evaluated("peft=dora")
    submitted.stage_path("train").unlink()
    write_json(submitted.submission_path, {"stages": {"train": {"job": "17"}}})
    submitted.log_event("start")
    answers = tmp_path / "answers"
    answers.write_text("1\n1\n1\n0\n")  # the exit codes of four queries, the last without a job
    squeue(f"code=$(head -1 {answers}); sed -i 1d {answers}; exit $code")
    status.watch(tmp_path / "runs", Console(file=io.StringIO()), 0.01)
    assert answers.read_text() == ""


def test_variables_of_squeue_do_not_change_the_query(tmp_path, squeue, monkeypatch):
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    squeue('echo "17|RUNNING|${SQUEUE_PARTITION:-None}|node1"')
    assert queue.active_jobs()["17"].reason == ""
