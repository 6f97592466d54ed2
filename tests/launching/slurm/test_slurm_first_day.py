"""Test on a real Slurm what a new user meets on the first day: the site's files, rlvr doctor --job, early failures."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from rlvr_sweeps.files import read_json
from tests.conftest import ROOT
from tests.launching.slurm.conftest import (
    NO_GPU,
    PARTITION,
    SMALL,
    only_run,
    queue,
    rlvr,
    sh,
    wait_for_empty_queue,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm is running: make test-slurm starts one"),
]
LAUNCH = ("launch.py", "cluster=slurm", *SMALL)


@pytest.fixture
def checkout(slurm, tmp_path):
    """Return a function that runs a Python program in a copy of this checkout with a site's files, and returns the process."""
    folder = tmp_path / "checkout"
    for name in ("rlvr_sweeps", "hydra_plugins", "conf", "paper"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "launch.py", folder)
    (folder / "conf/site/default.yaml").write_text(f"# @package _global_\nruns_dir: {tmp_path}/runs\n")

    def run(*arguments, site="", expect=0):
        text = f"# @package _global_\nhydra:\n  launcher:\n    partition: {PARTITION}\n{site}"
        (folder / "conf/site/slurm.yaml").write_text(text)
        environment = {key: value for key, value in os.environ.items() if key != "SQUEUE_PARTITION"} | {
            "PYTHONPATH": str(folder)
        }
        process = subprocess.run(
            [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
        )
        assert process.returncode == expect, process.stdout + process.stderr
        return process

    run.doctor = lambda site, expect: {
        row["what"]: row
        for row in json.loads(run("-m", "rlvr_sweeps.cli", "doctor", "--job", "--json", site=site, expect=expect).stdout)
    }
    return run


def test_the_doctors_job_has_the_options_of_a_real_run(checkout, slurm):
    """A setup line that fails, too much memory, an unknown reservation: each is what sbatch or the job says of a real run."""
    job = "a job (sbatch, srun)"
    wrong = checkout.doctor("    setup: ['true', 'cd /no/such/folder']\n", 1)[job]
    assert "The setup line failed: cd /no/such/folder" in wrong["found"] and f"partition={PARTITION}" in wrong["cure"]
    assert "node configuration" in checkout.doctor("    mem_gb: 9000\n", 1)[job]["found"]
    assert "reservation" in checkout.doctor("    additional_parameters: {reservation: nothing}\n", 1)[job]["found"]
    rows = checkout.doctor("    mem_gb: 20\n    gres: gpu:h100:1\n", 1)
    assert rows[job]["verdict"] == "good" and "gres=gpu:h100:1" in rows[job]["found"] and "mem-gb=20" in rows[job]["found"]
    assert rows["memory of a job"]["found"] == "Slurm gave 20 GB"
    assert [row["what"] for row in rows.values() if row["verdict"] == "bad"] == ["GPUs on the node", "driver and CUDA"]
    assert not queue() and not list(slurm.runs.iterdir())  # nothing is left


def test_a_job_that_ends_before_it_starts_the_run_shows_its_output(checkout, slurm):
    """The commonest failure of the first day; the same command with a correct site file then runs it."""
    checkout(*LAUNCH, *NO_GPU, site="    setup: ['module load cuda/99']\n")
    wait_for_empty_queue()
    status = checkout("-m", "rlvr_sweeps.cli", "status").stdout
    assert "before it started the run" in status and "1 lost" in status
    log = checkout("-m", "rlvr_sweeps.cli", "logs", only_run(slurm.runs).id).stdout
    assert "The setup line failed: module load cuda/99" in log
    checkout(*LAUNCH, *NO_GPU, "wait=true", "hydra.launcher.poll_s=1")
    assert only_run(slurm.runs).state() == "done"


def test_a_retry_without_its_launchs_folder_is_refused(checkout, slurm):
    """The folder holds the site's options; a retry without them would go to another partition and account."""
    checkout(*LAUNCH, *NO_GPU, site="    setup: ['false']\n")
    wait_for_empty_queue()
    shutil.rmtree(read_json(only_run(slurm.runs).submission_path)["launch"])
    refused = checkout("-m", "rlvr_sweeps.cli", "retry", only_run(slurm.runs).id, expect=1).stderr
    assert "is gone, and with it the options of sbatch" in refused and "Nothing was submitted" in refused
    assert not queue()


def test_a_run_whose_directory_cannot_be_made_is_left_out_and_named(slurm, closed_partition):
    slurm.runs.mkdir()
    plan = slurm("-m", "seed=1,2", "plan=true").stdout
    first = next(line.split()[0] for line in plan.splitlines() if line.startswith("tiny-"))
    (slurm.runs / first).write_text("a file in the place of the directory")
    refused = slurm("-m", "seed=1,2", expect=1)
    assert "submitted 1 runs" in refused.stdout
    assert "directories of 1 runs cannot be written" in refused.stderr and first in refused.stderr


def test_gpus_by_type(slurm, closed_partition):
    """Slurm's type by cluster.train.gpus_per_node, all GPUs by gres; the report job requests none."""
    slurm("cluster.train.gpus_per_node=h100:1", "cluster.evaluate.gpus_per_node=1", gpus=True)
    requests = [line.split() for line in sh("squeue", "--me", "-h", "-O", "Name:40,tres-per-node:60").splitlines()]
    by_name = {row[0]: row[-1] for row in requests}
    assert by_name["train"].endswith("gpu:h100:1") and by_name["evaluate"].endswith("gpu:1"), by_name
    assert by_name["report"] == "N/A"
    refused = slurm("seed=2", "hydra.launcher.gres=gpu:h100:4", gpus=True, expect=1).stderr
    assert "requests 4 GPUs on each node, but the train job" in refused
    slurm("seed=2", "hydra.launcher.gres=gpu:h100:1", gpus=True)
    assert rlvr("status", str(slurm.runs)).splitlines()[-1] == "2 runs: 2 queued"
