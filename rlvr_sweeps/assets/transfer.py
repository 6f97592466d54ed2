"""Copy problem sets to a machine that cannot reach the hub, for `rlvr data export|import`.

An export is a folder of .jsonl files with the hub's rows, and a manifest of sources, row counts and hashes. An import checks
all of these and stores the sets in the cache, which `problems.load_problems` reads before the hub. Configurations, and hence
run ids, do not change.
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


def export_sets(folder: Path, sets: Mapping[str, Source]) -> dict[str, Any]:
    """Write each set and the manifest, and return the manifest. Raise Refused if a set does not match its configuration."""
    entries = {}
    for name, source in sets.items():
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


def import_sets(folder: Path, configured: Mapping[str, Source]) -> dict[str, Any]:
    """Check an export, store its sets in the cache, return the manifest. On any mismatch raise Refused and store nothing."""
    entries = read_json(folder / "manifest.json")
    if entries is None:
        raise Refused(f"{folder} has no manifest.json. Give the folder that `rlvr data export` wrote.")
    checked = []
    for name, entry in entries.items():
        path = folder / f"{name}.jsonl"
        if not path.is_file():
            raise Refused(f"{path} is missing. Run `rlvr data export` again, and copy the whole folder.")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise Refused(f"{path} differs from the exported file: its hash is not that of the manifest. Copy it again.")
        rows = [json.loads(line) for line in content.decode().split("\n") if line]
        source = configured.get(name)
        if source is None or {key: source[key] for key in SOURCE_KEYS} != entry["source"]:
            raise Refused(
                f"{name} was exported from {entry['source']}, which is not the source of any configuration here. Use the same "
                "version of this code on both machines, and the same --model."
            )
        if len(rows) != entry["rows"]:
            raise Refused(f"{path} has {len(rows)} rows, but the manifest says {entry['rows']}. Export again.")
        refuse_mismatch(name, source, rows)
        checked.append((path, imported_path(source)))
    for path, target in checked:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}")
        shutil.copyfile(path, temporary)
        temporary.replace(target)
    return dict(entries)


def refuse_mismatch(name: str, source: Source, rows: list[dict[str, Any]]) -> None:
    """Raise Refused unless the set has the configured number of rows, and the configured fields in each."""
    if source["problems"] is not None and len(rows) != source["problems"]:
        raise Refused(f"{name} has {len(rows)} rows, but its configuration says {source['problems']}.")
    for field in (source["question"], source["answer"], *(source.get("columns") or {}).values()):
        if field is not None and any(field not in row for row in rows):
            raise Refused(f"{name} has rows without the field {field!r}, which its configuration names.")
