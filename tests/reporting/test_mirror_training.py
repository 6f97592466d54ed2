"""Test the W&B mirror during real training: two runs at once, killed and resumed, equal to runs without W&B bit for bit."""

import os
import signal
import subprocess
import time

import pytest

from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import all_runs
from tests.conftest import ROOT
from tests.launching.test_launch import SHORT, have_equal_results
from tests.reporting.test_mirror import KEY, curve, server, written_rows  # noqa: F401

pytestmark = pytest.mark.slow
GRID = ("-m", "peft=lora,full", *SHORT, "hydra.launcher.workers=2")


def test_killed_and_resumed_runs_are_two_curves_and_equal_runs_without_wandb(launch, server, tmp_path):  # noqa: F811
    alone = launch(*GRID, runs=tmp_path / "alone")
    assert not server.runs and "W&B" not in alone.stdout
    process = subprocess.Popen(
        launch.command(*GRID, "tracking=wandb"), cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not any(len(read_rows(run.metrics_path)) >= 2 for run in all_runs(launch.runs)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    launch(*GRID, "tracking=wandb")
    mirrored, plain = all_runs(launch.runs), all_runs(tmp_path / "alone")
    assert sorted(server.runs) == sorted(run.id for run in mirrored) and len(mirrored) == 2
    for with_wandb, without in zip(mirrored, plain, strict=True):
        assert have_equal_results(with_wandb, without)
        assert not without.wandb_path.exists()
        assert read_json(with_wandb.mirror_path)["confirmed"]
        stored = server.runs[with_wandb.id]
        assert [{key: value for key, value in row.items() if not key.endswith("_s")} for row in curve(stored.history)] == [
            {key: value for key, value in row.items() if not key.endswith("_s")} for row in written_rows(with_wandb)
        ]
        assert "other/" not in str(stored.history)  # every column has a W&B name
        assert [row["reach/step"] for row in stored.history if "reach/step" in row] == [2, 4]
        assert stored.fields["tags"].count(f"peft={with_wandb.config()['peft']['name']}") == 1
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
