"""Find the checkpoints of a training that are whole: written completely, with the recorded sizes and checksums."""

from dataclasses import dataclass, field
from pathlib import Path

from rlvr_sweeps.errors import Damaged
from rlvr_sweeps.files import read_object, write_json
from rlvr_sweeps.runs import checksums

COMPLETE = "complete.json"
KEPT = 2  # the newest checkpoint, and the one before, from which a training goes on where the newest is damaged later


def mark_complete(checkpoint: Path) -> None:
    """Write a checkpoint's checksums, then the size of each of its files to complete.json, the last file written to it.

    Raise Damaged where a file that is read again from the disk differs from what was written.
    """
    checksums.write_checksums(checkpoint)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    checksums.verify(checkpoint)
    write_json(checkpoint / COMPLETE, sizes)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders, the newest first, complete or not."""
    return sorted((path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()), key=step_of, reverse=True)


def step_of(checkpoint: Path | None) -> int:
    """Return the optimizer step of a checkpoint; 0 without one."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def is_complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint was written to the end, without a look at its files."""
    return (checkpoint / COMPLETE).exists()


def refuse_other_sizes(checkpoint: Path) -> None:
    """Raise Damaged where a file of a complete checkpoint is missing or has another size than the recorded one."""
    sizes = read_object(checkpoint / COMPLETE)
    if not sizes:
        raise Damaged(checkpoint / COMPLETE, "it names no files")
    for path, size in ((checkpoint / name, size) for name, size in sizes.items()):
        if not path.is_file():
            raise Damaged(path, "a folder is in its place" if path.is_dir() else "it is missing")
        if path.stat().st_size != size:
            raise Damaged(path, f"it has {path.stat().st_size:,} bytes instead of {size:,}")


def verify(checkpoint: Path) -> None:
    """Raise Damaged where a file of a complete checkpoint differs from what was written; without checksums, by its size."""
    refuse_other_sizes(checkpoint)
    checksums.verify(checkpoint)


def latest_complete_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint whose files have their recorded sizes, for displays; None without one."""
    for path in filter(is_complete, checkpoints(folder)):
        try:
            refuse_other_sizes(path)
        except Damaged:
            continue
        return path
    return None


@dataclass
class Choice:
    """The checkpoint from which a training goes on (None: from step 0), and the folders that it cannot use."""

    resume: Path | None = None
    damaged: dict[Path, Damaged] = field(default_factory=dict)  # newer than `resume`
    incomplete: list[Path] = field(default_factory=list)  # left by a writer that was killed


def choose(folder: Path) -> Choice:
    """Return the newest checkpoint that verifies; the older ones are not read."""
    choice = Choice(incomplete=[path for path in checkpoints(folder) if not is_complete(path)])
    for path in filter(is_complete, checkpoints(folder)):
        try:
            verify(path)
        except Damaged as damage:
            choice.damaged[path] = damage
            continue
        choice.resume = path
        break
    return choice


def superseded(folder: Path) -> list[Path]:
    """Return the checkpoints that are not among the KEPT newest complete ones."""
    kept = list(filter(is_complete, checkpoints(folder)))[:KEPT]
    return [path for path in checkpoints(folder) if path not in kept]
