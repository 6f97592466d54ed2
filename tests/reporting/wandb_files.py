"""Read the files that the SDK writes offline: records of the SDK's own protocol in LevelDB's log format."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER, MAGIC = 32768, 7, 7
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """Yield every record of a run-*.wandb file."""
    data, position, record = path.read_bytes(), MAGIC, b""
    assert data[:4] == b":W&B"
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:  # too little of this block is left for a header
            position += BLOCK - position % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + HEADER : position + HEADER + size]
        position += HEADER + size
        if kind in (FULL, LAST):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def key_of(item: Any) -> str:
    """Return the key of an item, or the path of a nested key, joined by dots."""
    return item.key or ".".join(item.nested_key)


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], Any]:
    """Return (history, summary, the run's record) of the single offline run below a folder."""
    (path,) = folder.glob("offline-run-*/run-*.wandb")
    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    run_record = None
    for record in records(path):
        if record.HasField("run"):
            run_record = record.run
        history += [{key_of(item): json.loads(item.value_json) for item in record.history.item}] if record.history.item else []
        summary |= {key_of(item): json.loads(item.value_json) for item in record.summary.update}
    return history, summary, run_record
