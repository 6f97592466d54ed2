"""Resolve where a model or a problem set is: a hub id, a path on this machine, a GGUF file, or part of an embedded world.

An embedded world is a folder of this package with a tiny model and its problems. It is stored rather than generated, since the
same recipe gives different weights on another type of processor. Configurations pin its content key as they pin a hub commit.
For a GGUF file (gguf.py) a configuration may pin it too.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from rlvr_sweeps.assets import gguf
from rlvr_sweeps.assets.problem_files import HUB, is_file
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.paths import cache_dir as cache_dir

EMBEDDED = "embedded:"
WORLDS_FOLDER = Path(__file__).parent / "embedded"


@cache
def content_key(world: Path) -> str:
    """Return eight hexadecimal digits of a hash over all files of an embedded world."""
    digest = hashlib.sha256()
    for file in sorted(path for path in world.rglob("[!.]*") if path.is_file()):
        digest.update(f"{file.relative_to(world).as_posix()} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def locate(path: str, revision: str | None) -> str:
    """Return the local path of an embedded or local asset, a hub id unchanged.

    For a GGUF file this is the folder of the converted model, which exists only after the conversion (`model_location` and
    `weights_folder` convert). Raise Refused if an embedded world or a GGUF file does not exist, or its content key is not
    `revision`; for a GGUF file, None allows any.
    """
    if gguf.is_gguf(path):
        return str(gguf.folder_of(pinned_gguf(path, revision)))
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


def pinned_gguf(path: str, revision: str | None) -> Path:
    """Return the GGUF file that `path` names; raise Refused if it does not exist or its content key is not `revision`."""
    file = gguf.find(path)
    if revision and revision != (key := gguf.content_key(file)):
        raise Refused(
            f"{path} has the content key {key} (the first 16 digits of its SHA-256), but this configuration pins "
            f"model.revision={revision}. Use the file of that content, or pin this one: model.revision={key}."
        )
    return file


def convert_gguf(cfg: Mapping[str, Any]) -> None:
    """Convert the model's GGUF file into its folder in the cache, if the model is one and this has not been done."""
    if gguf.is_gguf(cfg["model"]["path"]):
        gguf.converted(pinned_gguf(cfg["model"]["path"], cfg["model"]["revision"]))


def refuse_unconvertible(cfg: Mapping[str, Any]) -> None:
    """Raise Refused if the model is a GGUF file that is not converted and that this machine cannot convert."""
    if gguf.is_gguf(cfg["model"]["path"]):
        gguf.refuse_unprepared(pinned_gguf(cfg["model"]["path"], cfg["model"]["revision"]))


def model_location(cfg: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Return the model's path or hub id, and the `revision` argument for a hub id, {} for a local folder.

    A GGUF file is converted first, if this has not been done on this machine.
    """
    source = cfg["model"]
    convert_gguf(cfg)
    location = locate(source["path"], source["revision"])
    return location, {} if Path(location).exists() else {"revision": source["revision"]}


def sources(cfg: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the configuration of everything a run loads: its model, its training problems, its benchmarks."""
    return [cfg["model"], cfg["data"], *cfg["benchmark"].values()]


def refuse_missing(cfgs: list[Mapping[str, Any]]) -> None:
    """Raise Refused for a local path that does not exist or has another content key. Hub ids are not checked.

    A GGUF file is also refused if it cannot be converted.
    """
    for cfg in cfgs:
        for source in sources(cfg):
            path = source["path"]
            if gguf.is_gguf(path):
                gguf.refuse_unfit(pinned_gguf(path, source["revision"]))
                continue
            if path.startswith(HUB):
                continue
            local = path.startswith((EMBEDDED, "/", "./", "../", "~")) or is_file(path)
            if local and not Path(locate(path, source["revision"])).exists():
                raise Refused(f"{path} does not exist on this machine. Give an existing path, or a hub id.")


def weights_folder(cfg: Mapping[str, Any]) -> Path:
    """Return the local folder of the model's weights; a hub model is downloaded into the hub's cache.

    A GGUF file is converted first, if this has not been done on this machine.
    """
    convert_gguf(cfg)
    location = locate(cfg["model"]["path"], cfg["model"]["revision"])
    if Path(location).is_dir():
        return Path(location)
    from huggingface_hub import snapshot_download  # takes a tenth of a second, and most commands download nothing

    return Path(snapshot_download(location, revision=cfg["model"]["revision"], allow_patterns=["*.safetensors", "*.json"]))


def model_key(cfg: Mapping[str, Any]) -> str:
    """Return a hash that identifies the model's weights: of hub id and commit, or of the files where no commit is pinned.

    It ends in -bf16 where the model begins with rounded weights.
    """
    path, revision = cfg["model"]["path"], cfg["model"]["revision"] or ""
    suffix = "-bf16" if cfg["model"].get("rounded_to_bf16") else ""
    if not Path(locate(path, revision)).is_dir() and re.fullmatch("[0-9a-f]{40}", revision):
        return hashlib.sha256(f"{path}@{revision}".encode()).hexdigest()[:16] + suffix
    files = sorted(weights_folder(cfg).glob("*.safetensors"))
    if not files:
        raise Refused(f"{path} has no .safetensors files. Save the model with transformers' save_pretrained first.")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16] + suffix
