"""Paths: this checkout (the parent folder of the package, and conf/), and the user's cache."""

import os
from pathlib import Path

# The folder of rlvr_sweeps/, conf/ and paper/; in a queued job, the copy of the code made at submission.
ROOT = Path(__file__).resolve().parent.parent


def conf_dir() -> Path:
    """Return the conf/ folder beside the package."""
    return ROOT / "conf"


def cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/rlvr_sweeps`, or `~/.cache/rlvr_sweeps`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlvr_sweeps"
