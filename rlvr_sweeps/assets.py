"""Where a model or a set of problems lives: a hub id, a path on this machine, or part of an embedded world.

An embedded world is made on first use, once per machine, in the user's cache; its name there holds its content key, and
configurations pin that key as they pin a hub commit.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.identity import Resolved

EMBEDDED = "embedded:"


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/rlvr_sweeps`, or `~/.cache/rlvr_sweeps`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlvr_sweeps"


def world_dir(name: str, key: str) -> Path:
    return cache_dir() / f"{name}-{key}"


def locate(path: str, revision: str | None) -> str:
    """A local path for an embedded or local asset; a hub id comes back as it is."""
    if not path.startswith(EMBEDDED):
        return str(Path(path).expanduser()) if Path(path).expanduser().exists() else path
    name, _, member = path.removeprefix(EMBEDDED).partition("/")
    if not revision:
        raise Refused(f"{path} needs a revision: the content key that `python -m rlvr_sweeps.{name} --key` prints.")
    return str(world_dir(name, revision) / (member or "model"))


def place_of(cfg: Resolved) -> tuple[str, dict[str, str]]:
    """Where the run's model is, and the revision to ask the hub for; none for a local folder."""
    source = cfg["model"]
    place = locate(source["path"], source["revision"])
    return place, {} if Path(place).exists() else {"revision": source["revision"]}


def sources(cfg: Resolved) -> list[Mapping[str, Any]]:
    """Everything a run loads: its model, its training problems, its benchmarks."""
    return [cfg["model"], cfg["data"], *cfg["benchmark"].values()]


def refuse_missing(cfgs: list[Resolved]) -> None:
    """Raise Refused for a local path that is not there; hub ids are the hub's to judge."""
    for cfg in cfgs:
        for source in sources(cfg):
            path = source["path"]
            local = path.startswith(("/", "./", "../", "~")) or path.endswith(".jsonl")
            if local and not path.startswith(EMBEDDED) and not Path(path).expanduser().exists():
                raise Refused(f"{path} does not exist on this machine. Give a path that does, or a hub id.")


def ensure(cfgs: list[Resolved]) -> None:
    """Make the embedded worlds these runs need and this machine lacks, one maker at a time, with a progress bar."""
    worlds = {
        (source["path"].removeprefix(EMBEDDED).partition("/")[0], source["revision"])
        for cfg in cfgs
        for source in sources(cfg)
        if source["path"].startswith(EMBEDDED)
    }
    for name, key in sorted(worlds):
        place = world_dir(name, key)
        if place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with (place.parent / f".{place.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # whoever waited finds it made
            if not place.exists():
                make = [sys.executable, "-m", f"rlvr_sweeps.{name}", "--key", key, "--into", str(place)]
                if subprocess.run(make, stdout=subprocess.DEVNULL).returncode:
                    raise Refused(f"The embedded world {name}-{key} could not be made; its error stands above.")
