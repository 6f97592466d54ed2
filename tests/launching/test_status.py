"""Test that rlvr status prints one line per run at every width of the terminal."""

import io

import pytest
from rich.console import Console

from rlvr_sweeps.files import write_json
from rlvr_sweeps.launching import status


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
