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


def test_the_log_of_a_job_that_ended_before_it_started_the_run(evaluated, tmp_path, monkeypatch, capsys):
    """It is shown until the run has started, and named by rlvr status. Following it goes on with the stages' logs."""
    run = evaluated("peft=lora")
    run.stage_path("train").unlink()
    launch = tmp_path / "launch"
    write_json(run.submission_path, {"stages": {"train": {"job": "17_0"}, "evaluate": {"job": "18_0"}}, "launch": str(launch)})
    log = launch / ".submitit" / "17_0_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text("setup: no such module\n")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "squeue").write_text("#!/bin/bash\n")
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    rlvr(["logs", run.id, "--runs-dir", str(tmp_path / "runs")])
    assert capsys.readouterr().out == f"{log}\nsetup: no such module\n"
    rlvr(["status", str(tmp_path / "runs")])
    assert f"{run.name}: its Slurm job ended before it started the run. Its output: rlvr logs RUN" in capsys.readouterr().out
    run.log_path("train").parent.mkdir()
    run.log_path("train").write_text("step 1\n")
    run.log_event("start", stage="train", job="17_0")
    assert "".join(manage.follow_log(log, run)) == f"{run.log_path('train')}\nstep 1\n"


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
