"""Files that survive kill -9: atomic writes, reads that skip an incomplete last row, locks that the kernel releases."""

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
    """Write under a temporary name, then rename: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # a full disk: do not leave the temporary file on it
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)


class Yaml(yaml.CSafeDumper):
    """OmegaConf's writer on libyaml, ten times as fast: a launch may write a thousand configurations."""


Yaml.add_representer(
    str, patches.omegaconf_string_representer()
)  # quotes strings that OmegaConf would read as a number or a boolean


def as_yaml(value: Mapping[str, Any]) -> str:
    """Return a mapping as YAML, in the order of its keys."""
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
    """Take an advisory lock; return whether it was free within `patience_s`, long enough for a reader that tests it."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
