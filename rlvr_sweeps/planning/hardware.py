"""Read conf/hardware.yaml, the constants of the estimates, and determine the GPU that a run will have."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import gpu_count
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.gpus import driver_name
from rlvr_sweeps.paths import conf_dir

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, with the values of its data sheet."""

    name: str  # value of cluster.gpu
    product: str  # part of the name that the driver reports
    memory_gib: float
    bf16_tflops: float
    fp32_tflops: float  # without tensor cores, which compute float32 products from rounded factors
    bandwidth_tb_s: float
    vllm_slots: int  # sequences that vLLM decodes at the same time by default


@cache
def constants() -> dict[str, Any]:
    """Return the content of conf/hardware.yaml."""
    content = OmegaConf.to_container(OmegaConf.load(conf_dir() / "hardware.yaml"))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def known_gpus() -> dict[str, Gpu]:
    """Return the kinds of GPU of conf/hardware.yaml, by name."""
    return {name: Gpu(name, **facts) for name, facts in constants()["gpus"].items()}


def rates(gpu: Gpu) -> dict[str, float]:
    """Return the constants of the time model for a kind of GPU, by name: measured where it was measured, else estimated."""
    known = constants()
    names = ("decode_overhead_s", "generate_overhead_s", "shared_gpu")
    estimated = {**known["achieved"], **{name: known[name] for name in names}}
    return estimated | {name: value for name, value in calibration(gpu).items() if name in estimated}


def calibration(gpu: Gpu) -> dict[str, Any]:
    """Return the entry of `measured` in conf/hardware.yaml for a kind of GPU; empty where it was not measured."""
    return dict(constants()["measured"].get(gpu.name, {}))


def accuracy(gpu: Gpu) -> float:
    """Return the share by which the time model's seconds may differ from the true ones."""
    return float(constants()["accuracy"]["calibrated" if calibration(gpu) else "estimated"])


def gpu_of(cfg: Resolved) -> Gpu | None:
    """Return the GPU to estimate for; None without one, or for an unknown kind. Raises Refused for an unknown cluster.gpu."""
    name = cfg["cluster"]["gpu"]
    if name not in (None, "auto", *known_gpus()):
        raise Refused(
            f"cluster.gpu={name} is not known. Allowed: {', '.join(known_gpus())}, auto (this machine's), null (no estimates). "
            "To add a kind, add a line to conf/hardware.yaml."
        )
    if name is None or (cfg["cluster"]["name"] == "slurm" and gpu_count(cfg["cluster"]["train"]["gpus_per_node"]) == 0):
        return None
    return gpu_by_driver_name(driver_name()) if name == "auto" else known_gpus()[name]


def gpu_by_driver_name(name: str | None) -> Gpu | None:
    """Return the kind of GPU with this driver name; None for other kinds, and for PCIe and NVL variants of the SXM parts."""
    kinds = (gpu for gpu in known_gpus().values() if name and re.search(rf"\b{re.escape(gpu.product)}\b", name))
    return None if name and re.search(r"\b(PCIe|NVL)\b", name) else next(kinds, None)
