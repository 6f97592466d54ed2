"""Paths of this checkout: the parent folder of the package, and conf/."""

from pathlib import Path

# The folder of rlvr_sweeps/, conf/ and paper/; in a queued job, the copy of the code made at submission.
ROOT = Path(__file__).resolve().parent.parent


def conf_dir() -> Path:
    """Return the conf/ folder beside the package."""
    return ROOT / "conf"
