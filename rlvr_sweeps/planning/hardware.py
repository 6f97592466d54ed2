"""The constants of the plan's model (conf/hardware.yaml), and which GPU a run will have."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.gpus import driver_name
from rlvr_sweeps.paths import conf_dir

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, as its data sheet has it."""

    name: str  # of cluster.gpu
    product: str  # part of the name that its driver gives it
    memory_gib: float
    bf16_tflops: float
    bandwidth_tb_s: float


@cache
def constants() -> dict[str, Any]:
    read = OmegaConf.to_container(OmegaConf.load(conf_dir() / "hardware.yaml"))
    assert isinstance(read, dict)
    return {str(key): value for key, value in read.items()}


def known_gpus() -> dict[str, Gpu]:
    return {name: Gpu(name, **facts) for name, facts in constants()["gpus"].items()}


def gpu_of(cfg: Resolved) -> Gpu | None:
    """The GPU to reckon with; None where the run has none, or one of unknown kind. Refused for a cluster.gpu not known here."""
    asked = cfg["cluster"]["gpu"]
    if asked not in (None, "auto", *known_gpus()):
        raise Refused(
            f"cluster.gpu={asked} is not known. Allowed: {', '.join(known_gpus())}, auto (this machine's), null (nothing is "
            "reckoned). A further kind is a line in conf/hardware.yaml."
        )
    if asked is None or (cfg["cluster"]["name"] == "slurm" and cfg["cluster"]["train"]["gpus_per_node"] == 0):
        return None
    return gpu_by_driver_name(driver_name()) if asked == "auto" else known_gpus()[asked]


def gpu_by_driver_name(name: str | None) -> Gpu | None:
    """The known kind that a driver's name for a GPU means; None for its slower sisters on a card, which are none of these."""
    kinds = (gpu for gpu in known_gpus().values() if name and re.search(rf"\b{re.escape(gpu.product)}\b", name))
    return None if name and re.search(r"\b(PCIe|NVL)\b", name) else next(kinds, None)
