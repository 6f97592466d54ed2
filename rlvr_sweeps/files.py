"""Files that kill -9 cannot damage: atomic writes, reads that skip an incomplete last row, locks that the kernel releases.

What a killed writer leaves is tolerated; any other content that cannot be read raises Damaged, with the file's name.
"""

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
from rlvr_sweeps.errors import Damaged

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


def read_bytes(path: Path) -> bytes | None:
    """Return the content of a file; None if it does not exist. Raise Damaged where it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError:
        raise Damaged(path, "a folder is in its place") from None
    except OSError as error:
        raise Damaged(path, f"it cannot be read ({error.strerror})") from None


def read_text(path: Path) -> str | None:
    """Return the text of a file; None if it does not exist. Raise Damaged where it cannot be read as UTF-8."""
    content = read_bytes(path)
    try:
        return None if content is None else content.decode()
    except UnicodeDecodeError as error:
        raise Damaged(path, f"byte {error.start} is not UTF-8 text") from None


def read_json(path: Path) -> Any:
    """Return the value in a JSON file; None if the file does not exist.

    Raise Damaged for anything that is not JSON: write_json leaves the old file or the new one, never a part.
    """
    text = read_text(path)
    if text is None:
        return None
    if not text:
        raise Damaged(path, "it is empty")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Damaged(path, f"line {error.lineno} is not JSON ({error.msg})") from None


def read_object(path: Path, *keys: str) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if the file does not exist. Raise Damaged where it lacks one of `keys`."""
    value = read_json(path)
    if value is None:
        if path.exists():
            raise Damaged(path, "it holds no object")
        return None
    refuse_incomplete(path, value, keys, "it")
    assert isinstance(value, dict)
    return value


def refuse_incomplete(path: Path, value: Any, keys: Iterable[str], where: str) -> None:
    """Raise Damaged unless a value that was read from `path` is an object that has all `keys`; `where`: `it`, or `line 17`."""
    if not isinstance(value, dict):
        raise Damaged(path, f"{where} holds no object")
    if missing := [key for key in keys if key not in value]:
        raise Damaged(path, f"{where} has no {missing[0]!r}")


def parse_row(path: Path, number: int, line: bytes, keys: Iterable[str] = ()) -> Row:
    """Return the row in line `number` of a .jsonl file; raise Damaged unless it is an object that has all `keys`."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        raise Damaged(path, f"line {number} is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise Damaged(path, f"line {number} is not JSON ({error.msg})") from None
    refuse_incomplete(path, row, keys, f"line {number}")
    assert isinstance(row, dict)
    return row


def read_rows(path: Path, *keys: str) -> list[Row]:
    """Return the complete rows of a .jsonl file; an incomplete last line, which a killed writer leaves, is ignored.

    Raise Damaged, with the number of the line, for any other line that is not an object with all `keys`.
    """
    content = read_bytes(path)
    lines = [] if content is None else content.split(b"\n")[:-1]
    return [parse_row(path, number, line, keys) for number, line in enumerate(lines, 1)]


def as_json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as the text of a .jsonl file."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a .jsonl file in one write, after removing an incomplete last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell() and not ends_a_line(file):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(as_json_lines(rows).encode())


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
