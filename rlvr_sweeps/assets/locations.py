"""Where a model or a set of problems lives: a hub id, a path on this machine, or part of an embedded world.

An embedded world is a folder of this package: `tiny.py` made it once, since the same recipe ends in other weights on another
kind of processor. Configurations pin its content as they pin a hub commit.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from rlvr_sweeps.errors import Refused

EMBEDDED = "embedded:"
WORLDS = Path(__file__).parent / "embedded"


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/rlvr_sweeps`, or `~/.cache/rlvr_sweeps`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlvr_sweeps"


@cache
def content_key(world: Path) -> str:
    """Names a world by every file in it: eight hexadecimal digits."""
    total = hashlib.sha256()
    for file in sorted(path for path in world.rglob("[!.]*") if path.is_file()):
        total.update(f"{file.relative_to(world).as_posix()} {file.stat().st_size}\n".encode() + file.read_bytes())
    return total.hexdigest()[:8]


def locate(path: str, revision: str | None) -> str:
    """A local path for an embedded or local asset; a hub id comes back as it is. Refused where a world is not as pinned."""
    if not path.startswith(EMBEDDED):
        return str(Path(path).expanduser()) if Path(path).expanduser().exists() else path
    name, _, member = path.removeprefix(EMBEDDED).partition("/")
    world = WORLDS / name
    if not world.is_dir():
        raise Refused(f"{path} does not exist. Embedded worlds: {', '.join(sorted(place.name for place in WORLDS.iterdir()))}.")
    if content_key(world) != revision:
        raise Refused(
            f"{path} is {content_key(world)} here, and this configuration pins {revision}. A run of another version of the "
            "world is launched again; a world that was edited gets its key from python -m rlvr_sweeps.assets.tiny --key."
        )
    return str(world / (member or "model"))


def place_of(cfg: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Where the run's model is, and the revision to ask the hub for; none for a local folder."""
    source = cfg["model"]
    place = locate(source["path"], source["revision"])
    return place, {} if Path(place).exists() else {"revision": source["revision"]}


def sources(cfg: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Everything a run loads: its model, its training problems, its benchmarks."""
    return [cfg["model"], cfg["data"], *cfg["benchmark"].values()]


def refuse_missing(cfgs: list[Mapping[str, Any]]) -> None:
    """Raise Refused for a path that is not there, or is another version; hub ids are the hub's to judge."""
    for cfg in cfgs:
        for source in sources(cfg):
            path = source["path"]
            local = path.startswith((EMBEDDED, "/", "./", "../", "~")) or path.endswith(".jsonl")
            if local and not Path(locate(path, source["revision"])).exists():
                raise Refused(f"{path} does not exist on this machine. Give a path that does, or a hub id.")


def weights_folder(cfg: Mapping[str, Any]) -> Path:
    """The local folder of the model's weights: its own, or the hub's snapshot in the cache."""
    place = locate(cfg["model"]["path"], cfg["model"]["revision"])
    if Path(place).is_dir():
        return Path(place)
    return Path(snapshot_download(place, revision=cfg["model"]["revision"], allow_patterns=["*.safetensors", "*.json"]))


def model_key(cfg: Mapping[str, Any]) -> str:
    """Names the model's exact weights: a hash over the hub id and commit, or over the files where no commit is pinned."""
    path, revision = cfg["model"]["path"], cfg["model"]["revision"] or ""
    if not Path(locate(path, revision)).is_dir() and re.fullmatch("[0-9a-f]{40}", revision):
        return hashlib.sha256(f"{path}@{revision}".encode()).hexdigest()[:16]
    files = sorted(weights_folder(cfg).glob("*.safetensors"))
    if not files:
        raise Refused(f"{path} has no .safetensors files. Save the model with transformers' save_pretrained first.")
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()[:16]
