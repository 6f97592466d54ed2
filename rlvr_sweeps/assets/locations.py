"""Resolve where a model or a problem set is: a hub id, a path on this machine, or part of an embedded world.

An embedded world is a folder of this package with a tiny model and its problems. It is stored rather than generated, since the
same recipe gives different weights on another type of processor. Configurations pin its content key as they pin a hub commit.
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
WORLDS_FOLDER = Path(__file__).parent / "embedded"


def cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/rlvr_sweeps`, or `~/.cache/rlvr_sweeps`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlvr_sweeps"


@cache
def content_key(world: Path) -> str:
    """Return eight hexadecimal digits of a hash over all files of an embedded world."""
    digest = hashlib.sha256()
    for file in sorted(path for path in world.rglob("[!.]*") if path.is_file()):
        digest.update(f"{file.relative_to(world).as_posix()} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def locate(path: str, revision: str | None) -> str:
    """Return the local path of an embedded or local asset, a hub id unchanged.

    Raise Refused if an embedded world does not exist or its content key is not `revision`.
    """
    if not path.startswith(EMBEDDED):
        return str(Path(path).expanduser()) if Path(path).expanduser().exists() else path
    name, _, member = path.removeprefix(EMBEDDED).partition("/")
    world = WORLDS_FOLDER / name
    if not world.is_dir():
        worlds = ", ".join(sorted(folder.name for folder in WORLDS_FOLDER.iterdir()))
        raise Refused(f"{path} does not exist. Embedded worlds: {worlds}.")
    if content_key(world) != revision:
        raise Refused(
            f"{path} has the content key {content_key(world)}, but this configuration pins {revision}. Launch a run of an "
            "older version of the world again. After an edit of the world, put the key that `python -m rlvr_sweeps.assets.tiny "
            "--key` prints into conf/model/tiny.yaml."
        )
    return str(world / (member or "model"))


def model_location(cfg: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Return the model's path or hub id, and the `revision` argument for a hub id, {} for a local folder."""
    source = cfg["model"]
    location = locate(source["path"], source["revision"])
    return location, {} if Path(location).exists() else {"revision": source["revision"]}


def sources(cfg: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the configuration of everything a run loads: its model, its training problems, its benchmarks."""
    return [cfg["model"], cfg["data"], *cfg["benchmark"].values()]


def refuse_missing(cfgs: list[Mapping[str, Any]]) -> None:
    """Raise Refused for a local path that does not exist or has another content key. Hub ids are not checked."""
    for cfg in cfgs:
        for source in sources(cfg):
            path = source["path"]
            local = path.startswith((EMBEDDED, "/", "./", "../", "~")) or path.endswith(".jsonl")
            if local and not Path(locate(path, source["revision"])).exists():
                raise Refused(f"{path} does not exist on this machine. Give an existing path, or a hub id.")


def weights_folder(cfg: Mapping[str, Any]) -> Path:
    """Return the local folder of the model's weights; a hub model is downloaded into the hub's cache."""
    location = locate(cfg["model"]["path"], cfg["model"]["revision"])
    if Path(location).is_dir():
        return Path(location)
    return Path(snapshot_download(location, revision=cfg["model"]["revision"], allow_patterns=["*.safetensors", "*.json"]))


def model_key(cfg: Mapping[str, Any]) -> str:
    """Return a hash that identifies the model's weights: of hub id and commit, or of the files where no commit is pinned."""
    path, revision = cfg["model"]["path"], cfg["model"]["revision"] or ""
    if not Path(locate(path, revision)).is_dir() and re.fullmatch("[0-9a-f]{40}", revision):
        return hashlib.sha256(f"{path}@{revision}".encode()).hexdigest()[:16]
    files = sorted(weights_folder(cfg).glob("*.safetensors"))
    if not files:
        raise Refused(f"{path} has no .safetensors files. Save the model with transformers' save_pretrained first.")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]
