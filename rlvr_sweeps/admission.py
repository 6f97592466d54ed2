"""What a cluster would take and never carry out: refused before anything is submitted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rlvr_sweeps import slurm
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.plan import Planned
from rlvr_sweeps.submit import shape

NEVER_SHARED = ("tmpfs", "ramfs", "overlay", "squashfs")
OF_ONE_MACHINE = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs")  # seen elsewhere only where they are exported


def admit(todo: Sequence[Planned], params: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Raise Refused for jobs that no partition ends, and for folders that its nodes do not see; warn where that is likely."""
    there = slurm.partitions()
    default = next((name for name, partition in there.items() if partition.is_default), "")
    elsewhere = False
    for planned in todo:
        for stage, asked in shape(planned):
            names = str(asked.get("partition") or params.get("partition") or default).split(",")
            known = [there[name] for name in names if name in there]  # of an unknown one sbatch says so
            elsewhere |= any(partition.is_elsewhere for partition in known)
            longest = max((partition.limit_min for partition in known), default=float("inf"))
            if asked["timeout_min"] > longest:
                raise Refused(
                    f"cluster.{stage}.timeout_min={asked['timeout_min']}, but partition {' or '.join(names)} ends jobs after "
                    f"{longest:g} minutes: Slurm would let it wait for ever. Use cluster.{stage}.timeout_min={longest:g}; what "
                    "takes longer is requeued and goes on."
                )
    if elsewhere:
        for place, setting in ((Path(todo[0].cfg["runs_dir"]).absolute(), "runs_dir"), (folder, "hydra.sweep.dir")):
            kind = filesystem(place)
            if kind in NEVER_SHARED:
                raise Refused(
                    f"{setting}={place} is on {kind}, which only this machine sees, and the partition's nodes are others. "
                    f"Give a folder that login and compute nodes share: {setting}=/shared/…"
                )
            if kind in OF_ONE_MACHINE:
                console.print(
                    f"[yellow]{place} is on a disk of this machine ({kind}): nodes see it only if it is exported to them. "
                    "`rlvr doctor --job` looks.[/yellow]",
                    soft_wrap=True,
                )


def filesystem(place: Path) -> str:
    """The type of the file system that holds a path, by the kernel's table of mounts."""
    mounts = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    by_point = {Path(fields[4]): fields[fields.index("-") + 1] for fields in mounts}
    return next(by_point[parent] for parent in [place.resolve(), *place.resolve().parents] if parent in by_point)
