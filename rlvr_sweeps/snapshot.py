"""The code as it is now, copied once under a name made of its content: a queued job runs what was submitted."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from rlvr_sweeps.assets import WORLDS

ROOT = Path(__file__).parent.parent
PARTS = ("rlvr_sweeps", "hydra_plugins", "paper")  # the last job of a launch writes the report
KINDS = (".py", ".j2", ".css", ".js", ".yaml", ".csv")


def take(folder: Path) -> Path:
    """`folder`/<hash>, holding this package and its plugin; made if it is not there. Safe for several at once."""
    found = (path for part in PARTS for path in (ROOT / part).rglob("*") if path.is_file())
    files = sorted(path for path in found if path.suffix in KINDS or WORLDS in path.parents)
    total = hashlib.sha256()
    for path in files:
        total.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    place = folder / total.hexdigest()[:12]
    if place.exists():
        return place
    temporary = folder / f".{place.name}.{os.getpid()}"
    for path in files:
        copy = temporary / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    (temporary / "commit").write_text(commit() or "")
    try:
        temporary.rename(place)
    except OSError:  # another launch was faster
        shutil.rmtree(temporary)
    return place


def commit() -> str | None:
    """What `git describe` says of the code that runs, or what it said when the snapshot was taken; None without either."""
    if (ROOT / "commit").exists():
        return (ROOT / "commit").read_text() or None
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
