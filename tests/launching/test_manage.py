"""Test rlvr logs and rlvr cancel where no Slurm is needed, or one that answers with an error."""

import pytest

from rlvr_sweeps.cli import main as rlvr
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import write_json
from rlvr_sweeps.launching.slurm import manage


def test_following_a_log_goes_on_while_slurm_does_not_answer(evaluated, tmp_path, monkeypatch):
    """squeue fails twice, then names the running job, then no job; the log grows meanwhile."""
    run = evaluated("peft=lora")
    run.stage_path("train").unlink()
    write_json(run.submission_path, {"stages": {"train": {"job": "17"}}})
    log, counter, folder = run.log_path("train"), tmp_path / "queries", tmp_path / "bin"
    log.parent.mkdir()
    log.write_text("old\n")
    folder.mkdir()
    (folder / "squeue").write_text(
        f"#!/bin/bash\necho >> {counter}\ncount=$(wc -l < {counter})\necho $count >> {log}\n"
        "case $count in 1|2) exit 1;; 3) echo '17|RUNNING|None|node1';; esac\n"
    )
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(manage, "STATE_INTERVAL_S", 0.0)
    monkeypatch.setattr(manage, "FOLLOW_INTERVAL_S", 0.01)
    assert "".join(manage.follow_log(log, run)) == "1\n2\n3\n4\n"


def test_cancel_says_how_to_stop_a_run_of_a_local_launch(evaluated, tmp_path):
    run = evaluated("peft=lora")
    with run.claim(), pytest.raises(Refused, match=r"cluster=local works on it.*press Ctrl-C"):
        manage.cancel([run])
    with pytest.raises(Refused, match=f"No job in the queue for {run.name}"):
        manage.cancel([run])


@pytest.mark.parametrize("arguments", [[], ["--all", "--sweep", "rank"], ["a-run", "--all"]])
def test_cancel_takes_runs_or_a_sweep_or_all(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        rlvr(["cancel", *arguments])
    assert "rlvr cancel --sweep LABEL" in str(ended.value)
