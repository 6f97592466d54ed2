"""Checkpoints of a training: which are whole, and which is the newest."""

from pathlib import Path

from rlvr_sweeps.files import read_json, write_json


def mark_complete(checkpoint: Path) -> None:
    """State the size of every file of a checkpoint in complete.json, the last file it gets."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    write_json(checkpoint / "complete.json", sizes)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, the newest first, whole or not."""
    return sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True)


def step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def latest_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all there at their full size."""
    for path in checkpoints(folder):
        sizes = read_json(path / "complete.json")
        if sizes and all((path / name).is_file() and (path / name).stat().st_size == size for name, size in sizes.items()):
            return path
    return None
