"""`rlvr doctor`: what of this site would stop a sweep, found before one is launched, each with what to do about it."""

import fcntl
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from rlvr_sweeps import versions
from rlvr_sweeps.assets.locations import cache_dir
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.launching import node_probe
from rlvr_sweeps.launching.slurm import queue

STYLE = {"good": "green", "warning": "yellow", "bad": "red"}
WITHOUT = {
    "hub": "without it: models by path, problem sets by rlvr data import",
    "wandb": "without it curves and tables are in files alone",
}
COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
ROOM_GB = 50  # a run of the 1.5B keeps its merged weights (7 GB) and one checkpoint


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found, and what to do where it is not good."""

    what: str
    verdict: Literal["good", "warning", "bad"]
    found: str
    cure: str = ""


def examine(runs_dir: Path, job: bool) -> Iterator[Finding]:
    """Every check, in the order in which a sweep would meet them; `job`: start one on a node, and look from there."""
    yield packages()
    yield from folder(runs_dir)
    yield from cluster(runs_dir, job)
    hub = reach("hub")
    yield from (hub, reach("wandb"))
    imported = len(list((cache_dir() / "data").glob("*.jsonl")))
    cure = "rlvr data export on a machine with the hub, rlvr data import here"
    found = f"{imported} imported into {cache_dir() / 'data'}"
    yield judge("problem sets", hub.verdict == "good" or imported > 0, found, cure, "warning")


def packages() -> Finding:
    """Which versions are here, and whether they are a known set."""
    here = versions.judge(versions.installed())
    return judge("packages", here.known is not None, f"{here.found}: {here.known}" if here.known else here.found, here.cure)


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
    if not queue.slurm_is_installed():
        yield Finding("Slurm", "warning", "no squeue here", "Launch on a login node, or use cluster=local.")
        return
    try:
        queue.active_jobs()
        lines = queue.slurm_output("sinfo", "-h", "-o", "%P|%D|%G|%l|%a").splitlines()
    except Refused as refusal:
        yield Finding("Slurm", "bad", str(refusal), "Ask whoever runs the cluster.")
        return
    missing = [command for command in COMMANDS if not shutil.which(command)]
    found = f"there is no {', '.join(missing)}" if missing else ", ".join(COMMANDS)
    yield judge("Slurm's programs", not missing, found, "install Slurm's client programs here")
    for line in lines:
        name, nodes, gres, limit, up = line.split("|")
        good = up == "up"
        found = f"{nodes} nodes, {gres.replace('(null)', 'no GPUs')}, at most {limit}"
        yield Finding(f"partition {name}", "good" if good else "warning", found, "" if good else f"it is {up}")
    yield Finding("arrays", "good", f"of at most {queue.config_number('MaxArraySize', 1001):,} tasks")
    if job:
        yield from on_a_node(runs_dir, any("gpu" in line for line in lines))


def on_a_node(runs_dir: Path, gpu: bool) -> Iterator[Finding]:
    """What a job sees that asks for what conf/site asks for, and for a GPU where there is one."""
    try:
        facts = node_probe.ask(runs_dir, site_options(), gpu)
    except Refused as refusal:
        cure = "Put what it asks for into conf/site/default.yaml; activate the environment in its setup lines."
        yield Finding("a job (sbatch, srun)", "bad", str(refusal), cure)
        return
    yield Finding("a job (sbatch, srun)", "good", f"ran on {facts['host']}")
    shared = facts["seen"] == "from the login node" and facts["renamed"]
    found = "files replaced on one side are new on the other" if shared else "a file replaced on one side is old on the other"
    yield judge("shared folder", shared, found, "runs_dir= a folder that login and compute nodes share")
    differ = list(node_probe.disagreements(facts["versions"]))
    found = ", ".join(differ) or "the same packages as here"
    yield judge("Python on the node", not differ, found, "one environment for both, on a shared disk")
    if gpu:
        given, counted = len(facts["gpus"]), facts["torch_gpus"] or "none: it does not start"
        cure = "a CUDA build of torch; the driver's module in conf/site's setup lines"
        yield judge("GPUs on the node", counted == str(given), f"Slurm gave {given}, torch sees {counted}", cure)
    for name, host in node_probe.REACHED.items():
        found = "answers" if facts["reached"][name] else "does not answer"
        yield judge(f"{host} from the node", facts["reached"][name], found, WITHOUT[name], "warning")
    yield Finding("problem sets on the node", "good", f"{facts['problem_sets']} imported")


def site_options() -> dict[str, Any]:
    """hydra.launcher as conf/site/default.yaml leaves it."""
    from hydra import compose

    from rlvr_sweeps.config.compose import offline_composer

    offline_composer()
    cfg = compose("config", ["cluster=slurm"], return_hydra_config=True)
    options = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items()}


def reach(name: str) -> Finding:
    host = node_probe.REACHED[name]
    why_not = node_probe.unreachable(host)
    return judge(host, why_not is None, why_not or "answers", WITHOUT[name], "warning")


def judge(what: str, good: bool, found: str, cure: str, otherwise: Literal["warning", "bad"] = "bad") -> Finding:
    return Finding(what, "good", found) if good else Finding(what, otherwise, found, cure)


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
