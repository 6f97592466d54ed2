"""GPUs of this machine, as its driver and CUDA_VISIBLE_DEVICES tell, without importing torch."""

import os
from functools import cache
from pathlib import Path


@cache
def driver_name() -> str | None:
    """What the driver of this machine calls its first GPU; None on a machine without."""
    for folder in sorted(Path("/proc/driver/nvidia/gpus").glob("*")):
        for line in (folder / "information").read_text().splitlines():
            key, _, value = line.partition(":")
            if key == "Model":
                return value.strip()
    return None


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; none on a machine without."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device not in ("", "-1")]
    return [str(index) for index, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]
