"""What Slurm says: which of your jobs are in the queue, and its limits. squeue and scontrol; sacct is not needed."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.runs.directory import Job, Live

GONE = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED"}
TIMEOUT_S = 60


def present() -> bool:
    """Whether this machine can talk to a Slurm."""
    return shutil.which("squeue") is not None


def ask(*command: str) -> str:
    """Output of a Slurm command; Refused with Slurm's own words where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except FileNotFoundError:
        raise Refused(
            f"There is no {command[0]} here, so no Slurm: launch on a login node of the cluster, or use cluster=local."
        ) from None
    except subprocess.TimeoutExpired:
        raise Refused(f"{command[0]} did not answer within {TIMEOUT_S} s: is the controller of the cluster up?") from None
    if done.returncode:
        raise Refused(f"{' '.join(command[:2])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def live() -> dict[str, Job]:
    """Your jobs that are queued or at work, by id, from one squeue."""
    jobs = {}
    for line in ask("squeue", "--me", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%N").splitlines():
        name, state, reason, node = line.split("|", 3)
        if state not in GONE:
            jobs[name] = Job(state, "" if reason == "None" else reason, node)
    return jobs


def how_ended(jobs: Iterable[str]) -> dict[str, str]:
    """The last state of jobs that have left the queue, where the cluster keeps accounts (slurmdbd); else nothing."""
    names = ",".join(jobs)
    try:
        lines = ask("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", names).splitlines() if names else []
    except Refused:
        return {}
    return dict(line.split("|") for line in lines)


def reached() -> Live | None:
    """`live`; None where there is no Slurm, or it does not answer: files then say what they can."""
    try:
        return live() if present() else None
    except Refused:
        return None


def limit(name: str, default: int) -> int:
    """A number of `scontrol show config`, such as MaxArraySize."""
    found = re.search(rf"^{name}\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.M)
    return int(found[1]) if found else default


def every(pause_s: float, patience_s: float) -> Iterator[None]:
    """Again and again, with a pause between, until patience ends."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        yield
        time.sleep(pause_s)


@dataclass
class Partition:
    """Nodes that take jobs together, and for how long."""

    limit_min: float
    hosts: set[str]
    is_default: bool = False

    @property
    def is_elsewhere(self) -> bool:
        """Whether any of its nodes is another machine than this one."""
        here = socket.gethostname().partition(".")[0]
        return any(host.partition(".")[0] != here for host in self.hosts)


def partitions() -> dict[str, Partition]:
    """Every partition, by name."""
    found: dict[str, Partition] = {}
    for line in ask("sinfo", "-h", "-o", "%P|%l|%n").splitlines():
        name, limit, host = line.split("|")
        one = found.setdefault(name.rstrip("*"), Partition(minutes(limit), set(), name.endswith("*")))
        one.hosts.add(host)
    return found


def minutes(limit: str) -> float:
    """A time limit as sinfo prints it: infinite, [days-]hours:minutes:seconds or minutes:seconds."""
    if not re.fullmatch(r"[\d:-]+", limit):
        return float("inf")
    days, _, clock = limit.rpartition("-")
    hours, mins, seconds = ([0] + [int(part) for part in clock.split(":")])[-3:]
    return (int(days or 0) * 24 + hours) * 60 + mins + seconds / 60


@contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Without the variables of a job this process may be in: sbatch would take them for options.

    submitit's own clean_env drops SLURM_CONF too, without which sbatch finds no cluster where a site relies on it.
    """
    keep = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
    of_jobs = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_")
    gone = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith(of_jobs) and key not in keep}
    try:
        yield
    finally:
        os.environ.update(gone)
