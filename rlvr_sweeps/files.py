"""Files that kill -9 cannot damage: atomic writes, reads that skip an incomplete last row, locks that the kernel releases."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from rlvr_sweeps import patches

Row = dict[str, Any]


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, under a temporary name that is then renamed: a reader sees the old text or the new text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # for example a full disk, on which the temporary file must not stay
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)


class Yaml(yaml.CSafeDumper):
    """YAML writer with OmegaConf's rules on libyaml, ten times as fast as its own: a launch may write 1,000 configurations."""


# The representer quotes strings that OmegaConf would read as a number or a boolean.
Yaml.add_representer(str, patches.omegaconf_string_representer())


def as_yaml(value: Mapping[str, Any]) -> str:
    """Return a mapping as YAML text, with its keys in their own order."""
    return str(yaml.dump(dict(value), Dumper=Yaml, sort_keys=False, allow_unicode=True))


def text_digest(text: str) -> str:
    """Return the SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically; raise ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the value in a JSON file; None if the file does not exist or is incomplete."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the complete rows of a .jsonl file; an incomplete last line, which a killed writer leaves, is ignored."""
    rows = []
    try:
        with path.open() as file:
            for line in file:
                if line.endswith("\n"):
                    rows.append(json.loads(line))
    except (FileNotFoundError, NotADirectoryError):
        pass
    return rows


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a .jsonl file in one write, after removing an incomplete last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell() and not ends_a_line(file):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def ends_a_line(file: BinaryIO) -> bool:
    """Return whether the last byte of a file is a newline."""
    file.seek(-1, os.SEEK_END)
    return file.read() == b"\n"


def try_lock(descriptor: int, kind: int, patience_s: float = 0.0) -> bool:
    """Try to take an advisory lock for `patience_s` seconds; return whether it was taken.

    A positive `patience_s` outlasts a reader that holds the lock only for the moment in which it tests it.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
