"""`rlvr data export|import`: problem sets from a machine that reaches the hub to one that does not.

An export is a folder of .jsonl files, rows as the hub has them, and a manifest of sources, row counts and hashes. An import
checks all of that and files them in the cache, where `data.load_problems` looks before it asks the hub: configurations, and
so the ids of runs, stay as they are.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlvr_sweeps.assets.problems import imported_path, raw_rows, text_id
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json, write_json, write_text

Source = Mapping[str, Any]
SOURCE_KEYS = ("path", "revision", "subset", "split")


def export_sets(folder: Path, wanted: Mapping[str, Source]) -> dict[str, Any]:
    """Write each set and the manifest; returns the manifest. Refused where a set is not what its configuration says."""
    entries = {}
    for name, source in wanted.items():
        rows = raw_rows(source)
        refuse_mismatch(name, source, rows)
        text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        write_text(folder / f"{name}.jsonl", text)
        entries[name] = {
            "rows": len(rows), "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "problems": text_id("".join(str(row[source["question"]]) for row in rows)),
            "source": {key: source[key] for key in SOURCE_KEYS},
        }  # fmt: skip
    write_json(folder / "manifest.json", entries)
    return entries


def import_sets(folder: Path, known: Mapping[str, Source]) -> dict[str, Any]:
    """Check an export and file its sets in the cache; nothing is filed unless everything is right."""
    entries = read_json(folder / "manifest.json")
    if entries is None:
        raise Refused(f"{folder} has no manifest.json. Give the folder that `rlvr data export` wrote.")
    checked = []
    for name, entry in entries.items():
        path = folder / f"{name}.jsonl"
        if not path.is_file():
            raise Refused(f"{path} is missing. Export again.")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise Refused(f"{path} is not what was exported: its hash differs. Copy it again.")
        rows = [json.loads(line) for line in content.decode().split("\n") if line]
        source = known.get(name)
        if source is None or {key: source[key] for key in SOURCE_KEYS} != entry["source"]:
            raise Refused(f"{name} was exported from {entry['source']}, which no configuration here asks for. Use one version.")
        if len(rows) != entry["rows"]:
            raise Refused(f"{path} has {len(rows)} rows; the manifest says {entry['rows']}.")
        refuse_mismatch(name, source, rows)
        checked.append((path, imported_path(source)))
    for path, place in checked:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}")
        shutil.copyfile(path, temporary)
        temporary.replace(place)
    return dict(entries)


def refuse_mismatch(name: str, source: Source, rows: list[dict[str, Any]]) -> None:
    if source["problems"] is not None and len(rows) != source["problems"]:
        raise Refused(f"{name} has {len(rows)} rows, but its configuration says {source['problems']}.")
    for field in (source["question"], source["answer"]):
        if any(field not in row for row in rows):
            raise Refused(f"{name} has rows without the field {field!r}.")
