"""Test that a plan refuses the grids that a launch refuses, with the same message, locally and on Slurm."""

import io
import socket

import pytest
from rich.console import Console

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.launching import local
from rlvr_sweeps.launching.slurm import launch
from rlvr_sweeps.versions import KNOWN


@pytest.fixture
def execute(composer, tmp_path, monkeypatch):
    """Return a function that gives one point to the launcher of its cluster and returns the printed text.

    Slurm's programs are scripts: an empty queue, and one partition with a limit of a week.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, output in (("squeue", ""), ("sinfo", f"main*|7-00:00:00|{socket.gethostname()}")):
        (programs / name).write_text(f"#!/bin/sh\necho '{output}'\n" if output else "#!/bin/sh\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))

    def run(cluster, plan, *overrides, runs_dir=tmp_path / "runs"):
        point = composer.point([f"cluster={cluster}", f"plan={plan}", *overrides, f"runs_dir={runs_dir}"])
        console = Console(file=io.StringIO(), width=160)
        if cluster == "slurm":
            launch.execute([point], {}, tmp_path / "launch", console)
        else:
            local.execute([point], console=console)
        return console.file.getvalue()

    return run


FOR_BOTH = [
    (["model.path=/nowhere/model"], "/nowhere/model does not exist"),
    (["data.path=./nowhere.jsonl"], "nowhere.jsonl does not exist"),
    (["model.path=/proc"], "config.json"),
    (["model=r1_qwen_1_5b", "cluster.gpu=l40s"], "does not fit"),
]


@pytest.mark.parametrize(
    ("cluster", "overrides", "reason"),
    [
        *((cluster, *case) for cluster in ("local", "slurm") for case in FOR_BOTH),
        ("slurm", ["cluster.train.timeout_min=20000"], "cluster.train.timeout_min=10080"),
    ],
)
def test_plan_and_launch_refuse_the_same_grid(execute, cluster, overrides, reason):
    messages = []
    for plan in ("true", "false"):
        with pytest.raises(Refused, match=reason) as refused:
            execute(cluster, plan, *overrides)
        messages.append(str(refused.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("cluster", ["local", "slurm"])
@pytest.mark.parametrize("plan", ["true", "false"])
def test_unknown_versions_are_refused(execute, monkeypatch, cluster, plan):
    for description in KNOWN:
        monkeypatch.setitem(KNOWN, description, KNOWN[description] | {"trl": "1.15.0"})
    with pytest.raises(Refused, match=r"trl==1\.15\.0.*untested_versions=true"):
        execute(cluster, plan)


@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_only_a_launch_needs_a_writable_runs_folder(execute, cluster):
    assert "1 new; 1 to do." in execute(cluster, "true", runs_dir="/proc/none")
    with pytest.raises(Refused, match="/proc/none cannot be written"):
        execute(cluster, "false", runs_dir="/proc/none")


def test_a_slurm_launch_can_be_planned_without_slurm(execute, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "1 new; 1 to do." in execute("slurm", "true")
    with pytest.raises(Refused, match="no squeue here"):
        execute("slurm", "false")
