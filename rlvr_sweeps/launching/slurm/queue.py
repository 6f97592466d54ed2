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

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED"}
TIMEOUT_S = 60


def slurm_is_installed() -> bool:
    """Whether this machine can talk to a Slurm."""
    return shutil.which("squeue") is not None


def slurm_output(*command: str) -> str:
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


def active_jobs() -> dict[str, Job]:
    """Your jobs that are queued or at work, by id, from one squeue."""
    jobs = {}
    for line in slurm_output("squeue", "--me", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%N").splitlines():
        name, state, reason, node = line.split("|", 3)
        if state not in ENDED:
            jobs[name] = Job(state, "" if reason == "None" else reason, node)
    return jobs


def final_states(jobs: Iterable[str]) -> dict[str, str]:
    """The last state of jobs that have left the queue, where the cluster keeps accounts (slurmdbd); else nothing."""
    names = ",".join(jobs)
    try:
        lines = slurm_output("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", names).splitlines() if names else []
    except Refused:
        return {}
    return dict(line.split("|") for line in lines)


def active_jobs_if_reachable() -> Live | None:
    """`live`; None where there is no Slurm, or it does not answer: files then say what they can."""
    try:
        return active_jobs() if slurm_is_installed() else None
    except Refused:
        return None


def config_number(name: str, default: int) -> int:
    """A number of `scontrol show config`, such as MaxArraySize."""
    found = re.search(rf"^{name}\s*=\s*(\d+)", slurm_output("scontrol", "show", "config"), re.M)
    return int(found[1]) if found else default


def poll(pause_s: float, patience_s: float) -> Iterator[None]:
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
    for line in slurm_output("sinfo", "-h", "-o", "%P|%l|%n").splitlines():
        name, config_number, host = line.split("|")
        one = found.setdefault(name.rstrip("*"), Partition(minutes(config_number), set(), name.endswith("*")))
        one.hosts.add(host)
    return found


def minutes(config_number: str) -> float:
    """A time limit as sinfo prints it: infinite, [days-]hours:minutes:seconds or minutes:seconds."""
    if not re.fullmatch(r"[\d:-]+", config_number):
        return float("inf")
    days, _, clock = config_number.rpartition("-")
    hours, mins, seconds = ([0] + [int(part) for part in clock.split(":")])[-3:]
    return (int(days or 0) * 24 + hours) * 60 + mins + seconds / 60


@contextmanager
def without_job_environment() -> Iterator[None]:
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
