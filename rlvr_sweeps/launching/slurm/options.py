"""The options of sbatch for a job: those of hydra.launcher and conf/cluster, and the site's defaults in SBATCH_* variables."""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rlvr_sweeps.config.schema import ClusterConf, Resolved
from rlvr_sweeps.config.settings import gpu_count

Resources = dict[str, Any]
# Options of hydra.launcher and conf/cluster that submitit names, and those that are no options of sbatch; the others are.
SUBMITIT_NAMES = ("nodes", "gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min")
NOT_SBATCH = ("submitit_folder", "max_array_size", "poll_s", "max_num_timeout", "tasks_per_node", "name", "setup",
              "additional_parameters", "array_parallelism", "signal_delay_s", "stderr_to_stdout",
              "srun_args", "comment")  # fmt: skip
# Variables that sites set so that every job of a project has an option. Slurm ranks them above the options in a batch script,
# so that SBATCH_PARTITION would replace the partition of the command line; here they fill in what is not set.
FROM_ENVIRONMENT = {
    "SBATCH_ACCOUNT": "account", "SBATCH_PARTITION": "partition", "SBATCH_QOS": "qos", "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_RESERVATION": "reservation", "SBATCH_CLUSTERS": "clusters", "SBATCH_WCKEY": "wckey",
}  # fmt: skip
GPU_OPTIONS = ("gpus_per_node", "gpus_per_task", "gpus_per_socket", "cpus_per_gpu", "mem_per_gpu")


def with_environment(params: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return hydra.launcher with the site's SBATCH_* defaults where it sets no value, and these variables as `NAME=value`.

    An option that hydra.launcher has no key for goes into its `additional_parameters`.
    """
    merged = dict(params)
    additional = dict(merged.get("additional_parameters") or {})
    used = []
    for variable, option in FROM_ENVIRONMENT.items():
        value = os.environ.get(variable)
        if not value or merged.get(option) is not None or option in additional:
            continue
        if option in merged:
            merged[option] = value
        else:
            additional[option] = value
        used.append(f"{variable}={value}")
    return merged | {"additional_parameters": additional}, used


def resources(cfg: Resolved, stage: str) -> Resources:
    """Return the options of conf/cluster for a stage's job, or the `report` job, without those that are null."""
    options = cfg["cluster"].get(stage) or asdict(ClusterConf().report)  # stored configurations may lack `report`
    return {key: value for key, value in options.items() if value is not None}


def gres_gpus(params: Mapping[str, Any]) -> int | None:
    """Return the number of GPUs in hydra.launcher's `gres`, such as gpu:h100:4; None without GPUs in it."""
    gpus = [part.split(":") for part in str(params.get("gres") or "").split(",") if part.split(":")[0] == "gpu"]
    return sum(int(part[-1]) if part[-1].isdigit() else 1 for part in gpus) if gpus else None


def without_gpus(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return hydra.launcher without options that request GPUs, for a job that needs none."""
    further = {
        key: value
        for key, value in (params.get("additional_parameters") or {}).items()
        if key != "gpus" and key.replace("-", "_") not in GPU_OPTIONS
    }
    gres = [part for part in str(params.get("gres") or "").split(",") if part and part.split(":")[0] != "gpu"]
    dropped = dict.fromkeys(GPU_OPTIONS) | {"gres": ",".join(gres) or None}
    return {**params, **{key: value for key, value in dropped.items() if key in params}, "additional_parameters": further}


def job_options(needed: Resources, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return submitit's parameters of a job with these resources, and the further options of sbatch.

    `needed`: resources(); they replace those of `params` (hydra.launcher). A `gres` with GPUs replaces gpus_per_node, since
    Slurm adds the two up.
    """
    options = {key: value for key, value in params.items() if key not in NOT_SBATCH and value is not None} | needed
    further = dict(params.get("additional_parameters") or {})
    if gres_gpus(options) or not gpu_count(options.get("gpus_per_node", 0)):
        options.pop("gpus_per_node", None)
    elif not str(options["gpus_per_node"]).isdigit():  # submitit accepts numbers only
        further["gpus-per-node"] = options.pop("gpus_per_node")
    else:
        options["gpus_per_node"] = int(options["gpus_per_node"])
    return {key if key in SUBMITIT_NAMES else f"slurm_{key}": value for key, value in options.items()}, further


def checked_setup(lines: Sequence[str]) -> list[str]:
    """Return setup lines, each followed by a check that ends the job with the line in its log where the line fails.

    Lines that are a complete command only together, such as an `if` over several lines, are checked as a whole.
    """
    blocks = list(lines) if all(is_complete(line) for line in lines) else ["\n".join(lines)]
    checked = []
    for block in blocks:
        message = shlex.quote(f"The setup line failed: {block}")
        checked += [block, f"code=$?; if [ $code != 0 ]; then echo {message}" + ' "(exit code $code)"; exit $code; fi']
    return checked


def is_complete(line: str) -> bool:
    """Return whether bash can parse a line by itself."""
    return subprocess.run(["bash", "-n", "-c", line], capture_output=True).returncode == 0


def host_gib(params: Mapping[str, Any], needed: Resources) -> float | None:
    """Return the host memory that a job gets on each node, in GiB; None where only the site's default decides.

    It is `mem_gb`, else `mem_per_gpu` times the GPUs, else `mem_per_cpu` times the cores of the node's task.
    """
    options = {**params, **(params.get("additional_parameters") or {}), **needed}
    options = {key.replace("-", "_"): value for key, value in options.items() if value is not None}
    gpus = gres_gpus(options) or gpu_count(options.get("gpus_per_node", 0))
    for key, factor in (("mem", 1), ("mem_per_gpu", gpus), ("mem_per_cpu", options.get("cpus_per_task", 1))):
        if key == "mem" and options.get("mem_gb"):
            return float(options["mem_gb"])
        if key in options:
            size = memory_gib(str(options[key])) * factor
            return size or None  # 0: all of the node's memory
    return None


def memory_gib(text: str) -> float:
    """Return GiB of a memory size as sbatch reads it: megabytes without a unit, or K, M, G, T. 0 where it is no size."""
    number, unit = text.rstrip("bBKkMmGgTt"), text.upper().rstrip("B")[-1:]
    if not number.replace(".", "", 1).isdigit():
        return 0.0
    return float(number) * {"K": 2**-20, "G": 1.0, "T": 2**10}.get(unit, 2**-10)
