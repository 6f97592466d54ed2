"""Record the SHA-256 of every file of a folder of weights in checksums.json, and verify the folder before it is loaded."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlvr_sweeps.errors import Damaged
from rlvr_sweeps.files import read_object, write_json

NAME = "checksums.json"
THREADS = 4  # files that are hashed at the same time; hashlib releases the interpreter's lock
MOST_HEADER_BYTES = 100_000_000  # the limit of the format


def files_of(folder: Path) -> list[Path]:
    """Return every file of a folder but its checksums.json, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file; raise Damaged where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Damaged(path, f"it cannot be read ({error.strerror})") from None


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every file of a folder to its checksums.json.

    The files are read once more for this. They are written to the disk, and dropped from the kernel's cache, so that a
    verification that follows reads the disk, as far as the file system allows (network file systems and disks have caches of
    their own).
    """
    files = files_of(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        digests = list(pool.map(sha256_of, files))
        list(pool.map(flush, files))
    write_json(folder / NAME, {str(path.relative_to(folder)): digest for path, digest in zip(files, digests, strict=True)})


def flush(path: Path) -> None:
    """Write a file's content to the disk, and drop it from the kernel's cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def verify(folder: Path) -> bool:
    """Raise Damaged, with the file's name, where a file of a folder is missing or differs from its recorded SHA-256.

    In a folder that was written by a version without checksums, only the length of .safetensors files is compared with their
    header; returns False for it, else True.
    """
    recorded = read_object(folder / NAME)
    if recorded is None:
        for path in sorted(folder.glob("*.safetensors")):
            refuse_other_length(path)
        return False
    paths = [folder / name for name in recorded]
    for path in paths:
        if not path.is_file():
            raise Damaged(path, "a folder is in its place" if path.is_dir() else "it is missing")
    with ThreadPoolExecutor(THREADS) as pool:
        for path, digest in zip(paths, pool.map(sha256_of, paths), strict=True):
            if digest != recorded[path.relative_to(folder).as_posix()]:
                raise Damaged(path, f"its SHA-256 differs from the one in {NAME}")
    return True


def refuse_other_length(path: Path) -> None:
    """Raise Damaged where a .safetensors file is not as long as its header states.

    The file is: the header's length (8 bytes, little-endian), the header (JSON), and the tensors' bytes.
    """
    try:
        with path.open("rb") as file:
            header_length = int.from_bytes(file.read(8), "little")
            if header_length > MOST_HEADER_BYTES:
                raise Damaged(path, "it has no header")
            header = json.loads(file.read(header_length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise Damaged(path, "its header cannot be read") from None
    except OSError as error:
        raise Damaged(path, f"it cannot be read ({error.strerror})") from None
    expected = 8 + header_length + max(ends, default=0)
    if path.stat().st_size != expected:
        raise Damaged(path, f"it has {path.stat().st_size:,} bytes instead of {expected:,}")
