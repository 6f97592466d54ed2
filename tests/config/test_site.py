"""Test the files of a site: conf/site/default.yaml for everything, conf/site/slurm.yaml for cluster=slurm alone."""

import subprocess
import sys

import pytest
import yaml

from rlvr_sweeps import cli
from rlvr_sweeps.config import settings
from tests.conftest import ROOT


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Return a configuration folder with both example files as a user copies them; `rlvr` reads it too."""
    folder = tmp_path / "conf" / "site"
    folder.mkdir(parents=True)
    for example, name in (("example.yaml", "default.yaml"), ("example_slurm.yaml", "slurm.yaml")):
        (folder / name).write_text((ROOT / "conf" / "site" / example).read_text())
    monkeypatch.setattr(settings, "conf_dir", lambda: tmp_path / "conf")
    return folder


def composed(site, *arguments):
    """Return what launch.py composes with these files."""
    command = [sys.executable, "launch.py", "--config-dir", str(site.parent), *arguments]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return yaml.safe_load(printed)


@pytest.mark.slow
@pytest.mark.parametrize(("cluster", "partition"), [("slurm", "gpu"), ("local", None)])
def test_options_of_slurm_are_read_for_slurm_alone(site, cluster, partition):
    launcher = composed(site, f"cluster={cluster}", "--cfg", "hydra", "-p", "hydra.launcher")
    assert launcher.get("partition") == partition
    assert composed(site, f"cluster={cluster}", "--cfg", "job")["runs_dir"] == "/shared/you/runs"


def test_every_command_reads_the_folder_of_the_runs(site, tmp_path, capsys):
    (site / "default.yaml").write_text(f"# @package _global_\nruns_dir: {tmp_path}/shared\n")
    (tmp_path / "shared").mkdir()
    cli.main(["status"])
    assert "no runs" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        cli.main(["logs", "unknown"])
    assert f"There is no run unknown in {tmp_path}/shared" in str(exit_.value)


@pytest.mark.parametrize("content", [b"runs_dir: [", b"runs_dir: \xff", b"runs_dir: ${oc.env:NO_SUCH_VARIABLE}"])
def test_a_damaged_file_is_named(site, content):
    (site / "default.yaml").write_bytes(content)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["status"])
    assert "default.yaml cannot be read" in str(exit_.value)
