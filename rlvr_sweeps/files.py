"""Files that survive kill -9: atomic writes, reads that skip what is torn, locks the kernel frees."""

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


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # a full disk: leave it no fuller
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)


class Yaml(yaml.CSafeDumper):
    """OmegaConf's own writer, by libyaml: ten times as fast, which a launch of a thousand runs notices."""


Yaml.add_representer(str, patches.omegaconf_string_representer())  # quotes what OmegaConf would read as a number or a truth


def as_yaml(value: Mapping[str, Any]) -> str:
    return str(yaml.dump(dict(value), Dumper=Yaml, sort_keys=False, allow_unicode=True))


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The file's value; None where there is no such file, or where it holds no complete JSON."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a .jsonl file; a torn last line, as a killed writer leaves it, is no row."""
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
    """Append to a .jsonl file in one write; what a killed writer or a full disk left of a row is cut off before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell() and not ends_a_line(file):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read() == b"\n"


def try_lock(descriptor: int, kind: int, patience_s: float = 0.0) -> bool:
    """Take an advisory lock without blocking; `patience_s` outlasts a reader that only looks whether it is held."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)


Row = dict[str, Any]
