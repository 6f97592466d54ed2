"""Find the checkpoints of a training that were written completely."""

from pathlib import Path

from rlvr_sweeps.files import read_json, write_json


def mark_complete(checkpoint: Path) -> None:
    """Write the size of every file of a checkpoint to complete.json, the last file that is written to it."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    write_json(checkpoint / "complete.json", sizes)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders, the newest first, complete or not."""
    return sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True)


def step_of(checkpoint: Path | None) -> int:
    """Return the optimizer step of a checkpoint; 0 without one."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def latest_complete_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint whose files all exist with their recorded size; None without one."""
    for path in checkpoints(folder):
        sizes = read_json(path / "complete.json")
        if sizes and all((path / name).is_file() and (path / name).stat().st_size == size for name, size in sizes.items()):
            return path
    return None
