"""Test docs/verifier.md: write its files, execute its commands in an empty folder, and check what the page says of them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlvr_sweeps import cli
from rlvr_sweeps.config.compose import offline_composer
from rlvr_sweeps.config.identity import run_id, run_name
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.evaluation import audit
from rlvr_sweeps.evaluation.regrade import regrade
from rlvr_sweeps.files import read_json, read_rows, write_json
from rlvr_sweeps.grading import reward_pool
from rlvr_sweeps.reporting.differences.compare import compare
from rlvr_sweeps.runs.directory import all_runs
from tests.conftest import ROOT

PAGE = (ROOT / "docs/verifier.md").read_text()
FILES = {"csv": "sums.csv", "python": "my_reward.py"}


def blocks(kind):
    """Return the fenced blocks of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with what a clone has for a launch, and the files of the page."""
    path = tmp_path_factory.mktemp("user")
    shutil.copy(ROOT / "launch.py", path)
    shutil.copytree(ROOT / "conf", path / "conf", ignore=shutil.ignore_patterns("site"))
    for kind, name in FILES.items():
        (path / name).write_text(blocks(kind)[0])
    return path


@pytest.fixture
def inside(folder, monkeypatch):
    """Change into that folder."""
    monkeypatch.chdir(folder)
    reward_pool.close()
    yield folder
    reward_pool.close()


def execute(commands, folder, expect=0):
    """Run commands with the shell, as a user does; return the output."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "TRACKIO_DIR": str(folder / "trackio"), "COLUMNS": "200"}
    shell = subprocess.run(["bash", "-ec", commands], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert shell.returncode == expect, shell.stdout + shell.stderr
    return shell.stdout + shell.stderr


@pytest.mark.slow
def test_the_first_commands_of_the_page(folder):
    pytest.importorskip("trackio", reason="SKIPPED: trackio is not installed: pip install '.[trackio]'")
    tried, launched, *_ = blocks("sh")
    output = execute(tried, folder)
    assert re.search(r"gold answers +12 +12 +1\.00", output) and re.search(r"corrupted +12 +0 +0\.00", output)
    assert "report:" in execute(launched, folder)
    (run,) = all_runs(folder / "runs")
    summary = read_json(run.summary_path)
    assert run.state() == "done" and summary["split/n"] == 4
    assert (
        summary["verifier"].startswith("./my_reward.py:reward@")
        and summary["verifier"] == read_json(run.record_path)["verifier"]
    )
    assert list((folder / "trackio").rglob("*.db"))
    rows = read_rows(run.samples_path("split"))
    assert summary["avg"] == sum(row["score"] for row in rows) / len(rows)
    assert {row["reason"] for row in (*rows, *read_rows(run.rollouts_path))} <= {"correct", "wrong"}


@pytest.mark.slow
def test_the_run_of_the_page_is_judged_by_one_verifier(inside, capsys):
    """What follows needs the run of the test before it."""
    (run,) = all_runs(inside / "runs")
    changes, before, after = regrade(run, dry_run=True)
    assert not changes and before["avg"] == after["avg"]
    rows, total = audit.audit([run], 40, 0)
    assert total > 0 and rows and not any(audit.disagrees(row) for row in rows)
    with pytest.raises(Refused, match=r"is judged by \./my_reward\.py:reward@"):
        regrade(run, rules=object())
    other = shutil.copytree(run.path, inside / "runs" / "other")
    summary = read_json(other / "summary.json") | {"evaluation": "another"}
    write_json(other / "summary.json", summary)
    with pytest.raises(Refused, match="different benchmarks, k, decoding, grading or verifier"):
        compare([str(run.path), str(other)], inside / "runs")
    reward_pool.close()
    text = (inside / "my_reward.py").read_text()
    (inside / "my_reward.py").write_text(text + "\n# edited\n")
    with pytest.raises(SystemExit) as refusal:
        cli.main(["regrade", str(run.path)])
    assert "my_reward.py has changed: the run was configured with the source" in str(refusal.value)
    (inside / "my_reward.py").write_text(text)


def test_the_other_commands_of_the_page(inside):
    for commands in blocks("sh")[2:]:
        assert re.search(r"gold answers +12 +12 +1\.00", execute(commands, inside))


def test_files_of_the_page_say_the_same_as_its_command(inside):
    (inside / "conf/data/sums.yaml").write_text(blocks("yaml data")[0])
    (inside / "conf/verifier/sums.yaml").write_text(blocks("yaml verifier")[0])
    words = " ".join(blocks("sh")[1].split("\n")[:2]).replace("\\", "").split()
    overrides = [word for word in words[3:] if not word.startswith("tracking=")]
    composer = offline_composer(inside / "conf")
    try:
        typed = composer.point(overrides).cfg
        written = composer.point(["peft=lora", "steps=2", "batch_size=16", "data=sums", "benchmark=split", "verifier=sums"]).cfg
        assert typed["verifier"]["source"] == written["verifier"]["source"] is not None
        typed["data"]["name"], typed["verifier"]["columns"] = "sums", ["result"]
        assert run_id(typed) == run_id(written)
        text = (inside / "my_reward.py").read_text()
        (inside / "my_reward.py").write_text(text + "# edited\n")
        assert run_name(composer.point(overrides).cfg) != run_name(
            composer.point(overrides).cfg | {"verifier": typed["verifier"]}
        )
        (inside / "my_reward.py").write_text(text)
    finally:
        offline_composer()
