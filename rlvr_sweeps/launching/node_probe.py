"""The job of `rlvr doctor --job`: on a compute node it writes what it finds there as JSON, which the login node reads.

`probe_node` submits it with the options, setup lines and copy of the code of a real training job, for five minutes.
"""

import contextlib
import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr_sweeps.assets.locations import cache_dir
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json, write_json, write_text
from rlvr_sweeps.launching.slurm import queue, records
from rlvr_sweeps.launching.slurm.options import Resources
from rlvr_sweeps.launching.slurm.submit import Array, Target, job_log, snapshot_code, submit_array
from rlvr_sweeps.versions import NODE_PACKAGES

HOSTS = {"hub": "huggingface.co", "wandb": "api.wandb.ai"}
JOB_TIMEOUT_S = 180
JOB_LIMIT_MIN, NOTICE_S = 5, 60  # of the job
CONNECT_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class ProbeTask:
    """The probe, as submitit pickles it; `folder` is the one of `probe_node`."""

    folder: str

    def __call__(self) -> str:
        write_facts(Path(self.folder))
        return "probed"


def write_facts(folder: Path) -> None:
    """On the node: replace the login node's file `word`, and write the node's facts to `answer.json`."""
    memory_mb = os.environ.get("SLURM_MEM_PER_NODE")
    facts = {
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "seen": (folder / "word").read_text() if (folder / "word").exists() else None,
        "versions": package_versions(),
        "gpus": [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu],
        "torch_gpus": printed_by_torch("torch.cuda.device_count()"),
        "reached": {name: connection_error(host) is None for name, host in HOSTS.items()},
        "problem_sets": len(list((cache_dir() / "data").glob("*.jsonl"))),
        "driver": driver_version(),
        "cuda": printed_by_torch("torch.version.cuda"),
        "nccl": printed_by_torch("'.'.join(map(str, torch.cuda.nccl.version()))"),
        "scontrol": shutil.which("scontrol") is not None,
        "memory_gb": int(memory_mb) / 1024 if memory_mb else None,
        "temporary_gb": shutil.disk_usage(tempfile.gettempdir()).free / 1e9,
    }
    write_text(folder / "word", "from the node")
    write_json(folder / "answer.json", facts)


def printed_by_torch(expression: str) -> str:
    """Return what a new process prints for an expression of torch; empty where it fails."""
    program = f"import torch; print({expression})"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip()


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver, as nvidia-smi prints it; None where there is none."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        lines = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return lines[0].strip() if lines else None


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


def probe_node(runs_dir: Path, params: Mapping[str, Any], needed: Resources) -> dict[str, Any]:
    """On the login node: submit the job, wait for it, and return its facts.

    `params` is hydra.launcher, `needed` the resources of a training job, of which the time limit alone is replaced. Raises
    Refused, with the message of Slurm or the end of the job's log, where it does not run.
    """
    folder = runs_dir.absolute() / f".doctor.{uuid.uuid4().hex[:8]}"
    write_text(folder / "word", "from the login node")
    target = Target(params, folder, snapshot_code(folder / ".code"), folder, print)
    array = Array([ProbeTask(str(folder))], needed | {"timeout_min": JOB_LIMIT_MIN}, NOTICE_S, "rlvr doctor", None)
    record = records.begin(folder)
    try:
        (job,) = submit_array(array, target, record)
        records.release(record)
        facts = wait_for_facts(job, folder)
        return facts | {"renamed": (folder / "word").read_text() == "from the node"}
    finally:
        with contextlib.suppress(Refused):
            records.cancel(record)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_facts(job: str, folder: Path) -> dict[str, Any]:
    """Return the job's facts; Refused where it ends without them, or does not end within JOB_TIMEOUT_S."""
    for _ in queue.poll(0.5, JOB_TIMEOUT_S):
        if facts := read_json(folder / "answer.json"):
            return dict(facts)
        if job not in (active := queue.active_jobs()):
            path = job_log({"launch": str(folder)}, job)
            log = path.read_text(errors="replace").strip() if path.exists() else ""
            raise Refused(log_end(log) if log else f"the job wrote nothing into {folder}: nodes may not see that folder")
    reason = active[job].reason or active[job].state
    raise Refused(f"the job did not end within {JOB_TIMEOUT_S} s ({reason})")


def log_end(log: str) -> str:
    """Return the line of a job's log that says why it ended: that of a failed setup line, else the last one."""
    lines = log.splitlines()
    return next((line for line in lines if line.startswith("The setup line failed")), lines[-1])


def version_differences(node_versions: Mapping[str, str | None]) -> Iterator[str]:
    """Yield each package whose version on the node differs from this machine's, with both versions."""
    for package, version in package_versions().items():
        if node_versions.get(package) != version:
            yield f"{package} {node_versions.get(package) or 'missing'} (here {version or 'missing'})"
