"""What one of the cluster's nodes sees, for `rlvr doctor --job`: started there as a job, it writes what it finds as JSON."""

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

COMPARED = ("rlvr-sweeps", "torch", "transformers", "trl", "peft", "vllm", "deepspeed")
OPTIONS = ("partition", "account", "qos", "constraint")  # of hydra.launcher: what decides where a job may run
REACHED = {"hub": "huggingface.co", "wandb": "api.wandb.ai"}
PATIENCE_S = 180
REACH_S = 3.0
COUNT_GPUS = "import torch; print(torch.cuda.device_count())"


def look(folder: Path) -> None:
    """On the node: replace the login node's file, and write what is here."""
    facts = {
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "seen": (folder / "word").read_text() if (folder / "word").exists() else None,
        "versions": versions(),
        "gpus": [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu],
        "torch_gpus": subprocess.run([sys.executable, "-c", COUNT_GPUS], capture_output=True, text=True).stdout.strip(),
        "reached": {name: unreachable(host) is None for name, host in REACHED.items()},
        "problem_sets": len(list((cache_dir() / "data").glob("*.jsonl"))),
    }
    write_text(folder / "word", "from the node")
    write_json(folder / "answer.json", facts)


def versions() -> dict[str, str | None]:
    """Of what must be the same wherever a run's stages start; None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in COMPARED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def unreachable(host: str) -> str | None:
    """Why a host does not answer; None where it does, or where a proxy is to be asked."""
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return None
    try:
        socket.create_connection((host, 443), timeout=REACH_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def ask(runs_dir: Path, options: Mapping[str, Any], gpu: bool) -> dict[str, Any]:
    """On the login node: submit the look, wait for it, and return its facts. Refused with Slurm's or the job's own words."""
    folder = runs_dir / f".doctor.{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    write_text(folder / "word", "from the login node")
    more = " ".join(quote(one) for one in options.get("srun_args") or [])
    srun = f"srun --ntasks=1 {more} {quote(sys.executable)} -m rlvr_sweeps.launching.node_probe {quote(str(folder))}"
    write_text(folder / "job.sh", "\n".join(["#!/bin/bash", *(options.get("setup") or []), srun, ""]))
    where = [f"--{key}={options[key]}" for key in OPTIONS if options.get(key)]
    asked = ["--nodes=1", "--ntasks=1", "--time=5", *(["--gpus-per-node=1"] if gpu else []), *where]
    try:
        with queue.without_job_environment():
            job = queue.slurm_output("sbatch", "--parsable", f"--output={folder}/log", *asked, str(folder / "job.sh"))
        facts = wait(job.strip().partition(";")[0], folder)
        return facts | {"renamed": (folder / "word").read_text() == "from the node"}
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def wait(job: str, folder: Path) -> dict[str, Any]:
    for _ in queue.poll(0.5, PATIENCE_S):
        if facts := read_json(folder / "answer.json"):
            return dict(facts)
        if job not in (live := queue.active_jobs()):
            said = (folder / "log").read_text(errors="replace").strip() if (folder / "log").exists() else ""
            raise Refused(said.splitlines()[-1] if said else "it ended and left nothing in the runs folder: not shared?")
    reason = live[job].reason or live[job].state
    queue.slurm_output("scancel", job)
    raise Refused(f"it did not end within {PATIENCE_S} s ({reason})")


def disagreements(there: Mapping[str, str | None]) -> Iterator[str]:
    for package, version in versions().items():
        if there.get(package) != version:
            yield f"{package} {there.get(package) or 'missing'} (here {version or 'missing'})"


if __name__ == "__main__":
    look(Path(sys.argv[1]))
