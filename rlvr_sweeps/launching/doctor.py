"""`rlvr doctor`: check this machine and its cluster for what would stop a sweep, and print how to fix each problem.

`rlvr doctor RUN` examines the files of a run instead (`runs/examination.py`).
"""

import fcntl
import math
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlvr_sweeps import versions
from rlvr_sweeps.assets.locations import cache_dir
from rlvr_sweeps.config.compose import offline_composer
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.launching import node_probe
from rlvr_sweeps.launching.slurm import options, queue
from rlvr_sweeps.runs.examination import Verdict

STYLE = {"good": "green", "warning": "yellow", "bad": "red"}
IF_UNREACHABLE = {
    "hub": "Use models from local folders, and problem sets brought by rlvr data import.",
    "wandb": "Curves and tables are written to files only.",
}
COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
MIN_DRIVER = {"12": 525, "13": 580}  # by the first part of CUDA's version: NVIDIA's table of minor version compatibility
# Python, CUDA, vLLM and the export of the 1.5B model in one process (planning/host_memory.py); compiled kernels
MEMORY_GB, TEMPORARY_GB = 16, 5
SPACE_GB = 50  # a run of the 1.5B model keeps its merged weights (7 GB) and one checkpoint


@dataclass(frozen=True)
class Finding:
    """The result of one check; the fields are the keys of `rlvr doctor --json`. `cure`: what to do where it is not good."""

    what: str
    verdict: Literal["good", "warning", "bad"]
    found: str
    cure: str = ""


def examine(runs_dir: Path, job: bool) -> Iterator[Finding]:
    """Yield the result of every check, in the order in which a sweep depends on them; `job`: also start a job on a node."""
    yield check_packages()
    yield from check_runs_folder(runs_dir)
    yield from check_slurm(runs_dir, job)
    hub = check_host("hub")
    yield from (hub, check_host("wandb"))
    imported = len(list((cache_dir() / "data").glob("*.jsonl")))
    cure = "Run rlvr data export on a machine with access to the hub, and rlvr data import here."
    observed = f"{imported} imported into {cache_dir() / 'data'}"
    yield finding("problem sets", hub.verdict == "good" or imported > 0, observed, cure, "warning")


def check_packages() -> Finding:
    """Check that the installed versions are a set that is known to work."""
    judgement = versions.judge(versions.installed())
    observed = f"{judgement.description}: {judgement.known}" if judgement.known else judgement.description
    return finding("packages", judgement.known is not None, observed, judgement.cure)


def check_runs_folder(runs_dir: Path) -> Iterator[Finding]:
    """Check that the runs folder can be written, that a rename replaces a file, that locks work, and the free space."""
    probe = runs_dir / f".doctor.{uuid.uuid4().hex[:8]}"
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        probe.write_text("old")
        probe.with_suffix(".new").write_text("new")
        probe.with_suffix(".new").replace(probe)
        renamed = probe.read_text() == "new"
    except OSError as error:
        yield Finding(
            "runs folder", "bad", f"{runs_dir}: {error.strerror}", "Use a folder that you can write: runs_dir=/path/to/runs."
        )
        return
    observed = f"{runs_dir} can be written, {'renames replace' if renamed else 'but a rename does not replace a file'}"
    yield finding("runs folder", renamed, observed, "Use another file system: files could be left half-written on this one.")
    try:
        with probe.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Finding("locks", "good", "flock works here")
    except OSError as error:
        yield Finding("locks", "warning", f"flock: {error.strerror}", "Do not launch the same sweep twice at once.")
    finally:
        probe.unlink(missing_ok=True)
    free = shutil.disk_usage(runs_dir).free / 1e9
    cure = f"A sweep of the 1.5B model needs {SPACE_GB} GB or more: use another runs_dir, or free some space."
    yield finding("room", free > SPACE_GB, f"{free:,.0f} GB free", cure, "warning")


def check_slurm(runs_dir: Path, job: bool) -> Iterator[Finding]:
    """Check Slurm's controller, client programs, partitions and array limit; with `job`, a job on a node."""
    if not queue.slurm_is_installed():
        yield Finding("Slurm", "warning", "squeue is not installed", "Launch on a login node, or use cluster=local.")
        return
    try:
        queue.active_jobs()
        lines = queue.slurm_output("sinfo", "-h", "-o", "%P|%D|%G|%l|%a").splitlines()
    except Refused as refusal:
        yield Finding("Slurm", "bad", str(refusal), "Ask the administrators of the cluster.")
        return
    missing = [command for command in COMMANDS if not shutil.which(command)]
    observed = f"not installed: {', '.join(missing)}" if missing else ", ".join(COMMANDS)
    yield finding("Slurm's programs", not missing, observed, "Install Slurm's client programs on this machine.")
    for line in lines:
        name, nodes, gres, limit, state = line.split("|")
        observed = f"{nodes} nodes, {gres.replace('(null)', 'no GPUs')}, at most {limit}"
        yield finding(f"partition {name}", state == "up", observed, f"Its state is {state}: no jobs start in it.", "warning")
    yield Finding("arrays", "good", f"of at most {queue.config_number('MaxArraySize', 1001):,} tasks")
    if job:
        yield from check_node(runs_dir, any("gpu" in line for line in lines))


def check_node(runs_dir: Path, gpu: bool) -> Iterator[Finding]:
    """Check a node from a job with the options of a training: setup lines, memory, shared folder, packages, GPUs, hosts.

    `gpu`: whether any node of the cluster has GPUs; without one the job requests none.
    """
    cfg = offline_composer().point(["cluster=slurm"]).cfg
    params, needed = site_options(), options.resources(cfg, "train") | ({} if gpu else {"gpus_per_node": 0})
    command = " ".join(f"{key}={value}" for key, value in submitted_options(params, needed).items())
    try:
        yield from check_time_limits(cfg, params)
        facts = node_probe.probe_node(runs_dir, params, needed)
    except Refused as refusal:
        cure = f"The job had the options {command}. Correct conf/site/slurm.yaml (see conf/site/example_slurm.yaml)."
        yield Finding("a job (sbatch, srun)", "bad", str(refusal), cure)
        return
    yield Finding("a job (sbatch, srun)", "good", f"ran on {facts['host']} with {command}")
    shared = facts["seen"] == "from the login node" and facts["renamed"]
    observed = f"login node and compute node {'see' if shared else 'do not see'} each other's changes to a file"
    yield finding("shared folder", shared, observed, "Use a folder that login and compute nodes share: runs_dir=/shared/runs.")
    differences = list(node_probe.version_differences(facts["versions"]))
    observed = ", ".join(differences) or "the same packages as here"
    yield finding("Python on the node", not differences, observed, "Use one environment for both, on a shared disk.")
    if gpu:
        granted, visible = len(facts["gpus"]), facts["torch_gpus"] or "none: importing it fails"
        cure = "Install a CUDA build of torch; load the driver's module in the setup lines of conf/site/slurm.yaml."
        yield finding("GPUs on the node", visible == str(granted), f"Slurm gave {granted}, torch sees {visible}", cure)
        yield check_driver(facts)
    yield from check_memory(facts)
    observed = "in the path of the job" if facts["scontrol"] else "not in the path of the job, as in a container"
    yield Finding("scontrol", "good", f"{observed}; {'the job' if facts['scontrol'] else 'the batch script'} requeues itself")
    for name, host in node_probe.HOSTS.items():
        observed = "answers" if facts["reached"][name] else "does not answer"
        yield finding(f"{host} from the node", facts["reached"][name], observed, IF_UNREACHABLE[name], "warning")
    yield Finding("problem sets on the node", "good", f"{facts['problem_sets']} imported")


def check_time_limits(cfg: Resolved, params: Mapping[str, Any]) -> Iterator[Finding]:
    """Check that the partitions allow the time limits of training and evaluation."""
    known = queue.partitions()
    default = next((name for name, partition in known.items() if partition.is_default), "")
    for stage in ("train", "evaluate"):
        limit = cfg["cluster"][stage]["timeout_min"]
        names = str(cfg["cluster"][stage].get("partition") or params.get("partition") or default).split(",")
        longest = max((known[name].limit_min for name in names if name in known), default=None)
        if longest is None:  # sbatch's own words on an unknown partition follow
            continue
        allowed = "has no limit" if longest == math.inf else f"allows {longest:g}"
        cure = f"Set cluster.{stage}.timeout_min={longest:g} in conf/site/slurm.yaml; a run that takes longer is requeued."
        observed = f"{limit} minutes in {' or '.join(names)}, which {allowed}"
        yield finding(f"time limit ({stage})", limit <= longest, observed, cure)


def check_driver(facts: Mapping[str, Any]) -> Finding:
    """Check that the node's driver is new enough for the CUDA version of its torch."""
    driver, cuda = facts["driver"], facts["cuda"]
    needed = MIN_DRIVER.get(cuda.partition(".")[0])
    observed = (
        f"driver {driver or 'none'}, torch {facts['versions'].get('torch')} with CUDA {cuda}, NCCL {facts['nccl'] or 'none'}"
    )
    if needed is None:
        return finding("driver and CUDA", False, observed, "Install a CUDA build of torch: constraints-cuda.txt.")
    enough = driver is not None and int(driver.partition(".")[0]) >= needed
    return finding("driver and CUDA", enough, observed, f"CUDA {cuda} needs driver {needed} or newer on the nodes.")


def check_memory(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Check the memory that Slurm gave the job, and the space in the node's temporary folder."""
    memory = facts["memory_gb"]
    observed = "not limited by Slurm" if memory is None else f"Slurm gave {memory:,.0f} GB"
    cure = f"Set hydra.launcher.mem_gb: a 1.5B model takes {MEMORY_GB} GB on one GPU. plan=true prints what a grid needs."
    yield finding("memory of a job", memory is None or memory >= MEMORY_GB, observed, cure, "warning")
    free = facts["temporary_gb"]
    cure = "Set TMPDIR to a folder with more space in the setup lines: torch and vLLM compile kernels there."
    yield finding("temporary folder on the node", free > TEMPORARY_GB, f"{free:,.0f} GB free", cure, "warning")


def submitted_options(params: Mapping[str, Any], needed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a site chooses, as sbatch names them, for a message."""
    chosen, further = options.job_options(dict(needed), params)
    named = {
        key.removeprefix("slurm_").replace("_", "-"): value for key, value in chosen.items() if value not in (None, "", [], {})
    }
    return {key: value for key, value in (named | further).items() if key not in ("timeout-min", "nodes")}


def site_options() -> dict[str, Any]:
    """Return hydra.launcher as composed for cluster=slurm, with conf/site/slurm.yaml and the defaults in SBATCH_* variables."""
    from hydra import compose

    offline_composer()
    cfg = compose("config", ["cluster=slurm"], return_hydra_config=True)
    launcher = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
    assert isinstance(launcher, dict)
    return options.with_environment({str(key): value for key, value in launcher.items() if key != "_target_"})[0]


def check_host(name: str) -> Finding:
    """Check that this machine reaches one of node_probe.HOSTS."""
    host = node_probe.HOSTS[name]
    error = node_probe.connection_error(host)
    return finding(host, error is None, error or "answers", IF_UNREACHABLE[name], "warning")


def finding(what: str, good: bool, observed: str, cure: str, otherwise: Literal["warning", "bad"] = "bad") -> Finding:
    """Return the result of a check: "good" without a cure, or `otherwise` with it."""
    return Finding(what, "good", observed) if good else Finding(what, otherwise, observed, cure)


def folding_table(*columns: str) -> Table:
    """Return an empty table whose cells continue on further lines."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def show(findings: list[Finding], console: Console) -> None:
    """Print the results as a table."""
    table = folding_table("", "what", "found", "what to do")
    for result in findings:
        style = STYLE[result.verdict]
        table.add_row(f"[{style}]{result.verdict}[/{style}]", result.what, result.found, result.cure)
    console.print(table)


VERDICT_STYLE = {"whole": "green", "damaged": "red", "incomplete": "yellow"}


def show_run(verdicts: Sequence[Verdict], console: Console) -> None:
    """Print a verdict on each file of a run as a table."""
    table = folding_table("file", "", "what is wrong", "what follows")
    for verdict in verdicts:
        style = VERDICT_STYLE[verdict.verdict]
        table.add_row(Text(verdict.file), Text(verdict.verdict, style), Text(verdict.why), Text(verdict.follows))
    console.print(table)


def as_rows(findings: list[Finding]) -> list[dict[str, str]]:
    """Return the results as `rlvr doctor --json` prints them."""
    return [asdict(result) for result in findings]
