"""The job of `rlvr doctor --job`: on a compute node it writes what it finds there as JSON, which the login node reads.

    python -m rlvr_sweeps.launching.node_probe FOLDER

runs on the node; `probe_node` submits it from the login node.
"""

import importlib.metadata
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from rlvr_sweeps.assets.locations import cache_dir
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json, write_json, write_text
from rlvr_sweeps.launching.slurm import queue
from rlvr_sweeps.versions import NODE_PACKAGES

SBATCH_OPTIONS = ("partition", "account", "qos", "constraint")  # of hydra.launcher: those that decide where a job may run
HOSTS = {"hub": "huggingface.co", "wandb": "api.wandb.ai"}
JOB_TIMEOUT_S = 180
CONNECT_TIMEOUT_S = 3.0
COUNT_GPUS = "import torch; print(torch.cuda.device_count())"


def write_facts(folder: Path) -> None:
    """On the node: replace the login node's file `word`, and write the node's facts to `answer.json`."""
    facts = {
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "seen": (folder / "word").read_text() if (folder / "word").exists() else None,
        "versions": package_versions(),
        "gpus": [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu],
        "torch_gpus": subprocess.run([sys.executable, "-c", COUNT_GPUS], capture_output=True, text=True).stdout.strip(),
        "reached": {name: connection_error(host) is None for name, host in HOSTS.items()},
        "problem_sets": len(list((cache_dir() / "data").glob("*.jsonl"))),
    }
    write_text(folder / "word", "from the node")
    write_json(folder / "answer.json", facts)


def package_versions() -> dict[str, str | None]:
    """Return the versions of the packages that must be the same on all nodes; None for a package that is not installed."""
    versions: dict[str, str | None] = {}
    for package in NODE_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def connection_error(host: str) -> str | None:
    """Return why a host cannot be reached; None where it can, or where a proxy is set, which is not checked."""
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return None
    try:
        socket.create_connection((host, 443), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def probe_node(runs_dir: Path, options: Mapping[str, Any], gpu: bool) -> dict[str, Any]:
    """On the login node: submit the job, with one GPU if `gpu`, wait for it, and return its facts.

    `options` is hydra.launcher. Raises Refused, with the message of Slurm or of the job, where it does not run.
    """
    folder = runs_dir / f".doctor.{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    write_text(folder / "word", "from the login node")
    srun_args = " ".join(quote(argument) for argument in options.get("srun_args") or [])
    srun = f"srun --ntasks=1 {srun_args} {quote(sys.executable)} -m rlvr_sweeps.launching.node_probe {quote(str(folder))}"
    write_text(folder / "job.sh", "\n".join(["#!/bin/bash", *(options.get("setup") or []), srun, ""]))
    site_options = [f"--{key}={options[key]}" for key in SBATCH_OPTIONS if options.get(key)]
    sbatch_options = ["--nodes=1", "--ntasks=1", "--time=5", *(["--gpus-per-node=1"] if gpu else []), *site_options]
    try:
        with queue.without_job_environment():
            job = queue.slurm_output("sbatch", "--parsable", f"--output={folder}/log", *sbatch_options, str(folder / "job.sh"))
        facts = wait_for_facts(job.strip().partition(";")[0], folder)
        return facts | {"renamed": (folder / "word").read_text() == "from the node"}
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def wait_for_facts(job: str, folder: Path) -> dict[str, Any]:
    """Return the job's facts; Refused where it ends without them, or does not end within JOB_TIMEOUT_S."""
    for _ in queue.poll(0.5, JOB_TIMEOUT_S):
        if facts := read_json(folder / "answer.json"):
            return dict(facts)
        if job not in (active := queue.active_jobs()):
            log = (folder / "log").read_text(errors="replace").strip() if (folder / "log").exists() else ""
            raise Refused(
                log.splitlines()[-1] if log else f"the job wrote nothing into {folder}: nodes may not see that folder"
            )
    reason = active[job].reason or active[job].state
    queue.slurm_output("scancel", job)
    raise Refused(f"the job did not end within {JOB_TIMEOUT_S} s ({reason})")


def version_differences(node_versions: Mapping[str, str | None]) -> Iterator[str]:
    """Yield each package whose version on the node differs from this machine's, with both versions."""
    for package, version in package_versions().items():
        if node_versions.get(package) != version:
            yield f"{package} {node_versions.get(package) or 'missing'} (here {version or 'missing'})"


if __name__ == "__main__":
    write_facts(Path(sys.argv[1]))
