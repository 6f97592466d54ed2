"""Read what the SDK writes offline: records of the SDK's own protocol in LevelDB's log format."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER, MAGIC = 32768, 7, 7
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """Every record of a run-*.wandb file."""
    data, place, record = path.read_bytes(), MAGIC, b""
    assert data[:4] == b":W&B"
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # too little of this block is left for a header
            place += BLOCK - place % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + HEADER : place + HEADER + size]
        place += HEADER + size
        if kind in (FULL, LAST):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def key_of(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], Any]:
    """History, summary and the run's own record of the one offline run below a folder."""
    (path,) = folder.glob("offline-run-*/run-*.wandb")
    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    about = None
    for record in records(path):
        if record.HasField("run"):
            about = record.run
        history += [{key_of(item): json.loads(item.value_json) for item in record.history.item}] if record.history.item else []
        summary |= {key_of(item): json.loads(item.value_json) for item in record.summary.update}
    return history, summary, about
