"""Queries to Slurm: the user's active jobs, partitions, limits, by squeue, sinfo and scontrol; sacct is optional."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.runs.directory import Job, Live, NoAnswer

ENDED_STATES = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
}
TIMEOUT_S = 60.0  # of one command
SHORT_TIMEOUT_S = 10.0  # of a query for a display, which can go on without an answer
# Prefixes of variables that would change what a query returns, or what scancel cancels: with SCANCEL_PARTITION, the scancel of
# Slurm 22.05 cancels a whole array in place of one waiting task.
OPTION_PREFIXES = ("SQUEUE_", "SINFO_", "SACCT_", "SCONTROL_", "SCANCEL_")


def slurm_is_installed() -> bool:
    """Return whether this machine has Slurm's client programs."""
    return shutil.which("squeue") is not None


def slurm_output(*command: str, timeout_s: float = TIMEOUT_S) -> str:
    """Run a Slurm command and return its output; raises Refused, with Slurm's message, where it fails or does not answer."""
    try:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(OPTION_PREFIXES)}
        process = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment)
    except FileNotFoundError:
        raise Refused(
            f"There is no {command[0]} here, hence no Slurm. Launch on a login node of the cluster, or use cluster=local."
        ) from None
    except subprocess.TimeoutExpired:
        raise Refused(
            f"{command[0]} did not answer within {timeout_s:g} s. Check that the cluster's controller is up: scontrol ping."
        ) from None
    if process.returncode:
        raise Refused(f"{' '.join(command[:2])}: {process.stderr.strip() or process.stdout.strip()}")
    return process.stdout


# Slurm's words where it may accept the same job a moment later: sbatch did not reach the controller, or lost its answer.
TRANSIENT = re.compile(
    r"Socket timed out|Unable to contact slurm controller|Communication connection failure|Connection (?:refused|timed out)"
    r"|Zero Bytes were transmitted|Transport endpoint is not connected|standby mode|Protocol authentication error"
    r"|Unable to establish (?:controller|control) machine"
)
LIMITED = re.compile(r"\b((?:Assoc|QOS)\w*SubmitJob\w*)")  # the limit of jobs that an account or QOS is at
LIMIT = re.compile(r"\b(?:Assoc|QOS)\w+")  # any limit of an account or QOS; others than LIMITED refuse a job for ever


def refusal_kind(message: str) -> Literal["transient", "full", "permanent"]:
    """Return what sbatch's message means: try again, wait until the user has fewer jobs, or change the job.

    Slurm follows each limit of an account or QOS by one and the same sentence, so that only the limit's name tells them apart.
    """
    if TRANSIENT.search(message):
        return "transient"
    if LIMITED.search(message) or "MaxJobCount" in message or "Resource temporarily unavailable" in message:
        return "full"
    return "full" if "job submit limit" in message and not LIMIT.search(message) else "permanent"


def frees_itself(message: str, account: str | None, qos: str | None) -> bool:
    """Return whether jobs that count towards the limit in sbatch's message are in the queue, so that waiting helps.

    Limits of groups count other users' jobs too, which are not listed everywhere: waiting is then assumed to help.
    """
    limit = LIMITED.search(message)
    if limit is None or "Grp" in limit[1] or "PerAccount" in limit[1]:
        return True
    jobs = [line.split("|") for line in slurm_output("squeue", "--me", "-h", "-o", "%a|%q").splitlines()]
    if limit[1].startswith("Assoc"):
        return any(account in (None, job_account) for job_account, _ in jobs)
    return any(qos in (None, job_qos) for _, job_qos in jobs)


def active_jobs(timeout_s: float = TIMEOUT_S) -> dict[str, Job]:
    """Return the user's queued and running jobs by id, from one squeue; an array's task has the id 12_3."""
    jobs = {}
    columns = "%i|%T|%r|%N|%k"  # the comment comes last, since it may contain anything
    for line in slurm_output("squeue", "--me", "-h", "-r", "-t", "all", "-o", columns, timeout_s=timeout_s).splitlines():
        name, state, reason, node, *comment = line.split("|", 4)
        if state not in ENDED_STATES:
            jobs[name] = Job(state, "" if reason == "None" else reason, node, "".join(comment))
    return jobs


def final_states(jobs: Iterable[str]) -> dict[str, str]:
    """Return the last state of jobs that have left the queue, by id; empty where the cluster has no accounting (slurmdbd)."""
    names = ",".join(jobs)
    try:
        lines = slurm_output("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", names).splitlines() if names else []
    except Refused:
        return {}
    return dict(line.split("|") for line in lines)


def active_jobs_if_reachable() -> Live | None:
    """Return active_jobs(); None where Slurm is not installed, and NoAnswer where it does not answer in SHORT_TIMEOUT_S."""
    try:
        return active_jobs(SHORT_TIMEOUT_S) if slurm_is_installed() else None
    except Refused as refusal:
        return NoAnswer(str(refusal))


def config_number(name: str, default: int) -> int:
    """Return a number of `scontrol show config`, such as MaxArraySize; `default` where it is not there."""
    match = re.search(rf"^{name}\s*=\s*(\d+)", slurm_output("scontrol", "show", "config"), re.M)
    return int(match[1]) if match else default


def poll(interval_s: float, timeout_s: float) -> Iterator[None]:
    """Yield every `interval_s` seconds until `timeout_s` seconds have passed."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        yield
        time.sleep(interval_s)


@dataclass
class Partition:
    """A partition: its longest time limit in minutes, its hosts, and whether it is the default."""

    limit_min: float
    hosts: set[str]
    is_default: bool = False

    @property
    def has_other_hosts(self) -> bool:
        """Whether any of its hosts is a machine other than this one."""
        here = socket.gethostname().partition(".")[0]
        return any(host.partition(".")[0] != here for host in self.hosts)


def partitions() -> dict[str, Partition]:
    """Return every partition by name."""
    by_name: dict[str, Partition] = {}
    for line in slurm_output("sinfo", "-h", "-o", "%P|%l|%n").splitlines():
        name, limit, host = line.split("|")
        partition = Partition(parse_minutes(limit), set(), name.endswith("*"))
        by_name.setdefault(name.rstrip("*"), partition).hosts.add(host)
    return by_name


def parse_minutes(limit: str) -> float:
    """Return a time limit of sinfo in minutes: `infinite`, [days-]hours:minutes:seconds or minutes:seconds."""
    if not re.fullmatch(r"[\d:-]+", limit):
        return float("inf")
    days, _, clock = limit.rpartition("-")
    hours, minutes, seconds = ([0] + [int(part) for part in clock.split(":")])[-3:]
    return (int(days or 0) * 24 + hours) * 60 + minutes + seconds / 60


@contextmanager
def without_job_environment() -> Iterator[None]:
    """Remove the environment variables of a surrounding Slurm job while inside, and SBATCH_*: sbatch reads them as options.

    SBATCH_* that are a site's defaults are among the job's options already (options.with_environment). submitit's own clean_env
    removes SLURM_CONF too, and some sites' sbatch does not find the cluster without it.
    """
    kept = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
    prefixes = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_")
    removed = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith(prefixes) and key not in kept}
    try:
        yield
    finally:
        os.environ.update(removed)
