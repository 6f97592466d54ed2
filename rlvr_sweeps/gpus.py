"""GPUs of this machine, read from its driver and CUDA_VISIBLE_DEVICES without importing torch."""

import os
from functools import cache
from pathlib import Path


@cache
def driver_name() -> str | None:
    """Return the first GPU's name as its driver reports it; None on a machine without a GPU."""
    for folder in sorted(Path("/proc/driver/nvidia/gpus").glob("*")):
        for line in (folder / "information").read_text().splitlines():
            key, _, value = line.partition(":")
            if key == "Model":
                return value.strip()
    return None


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES; empty on a machine without a GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device not in ("", "-1")]
    return [str(index) for index, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]
