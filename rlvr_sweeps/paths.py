"""Paths of this checkout: where the package's own parent folder and conf/ are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # holds rlvr_sweeps/, conf/ and paper/; in a queued job, the frozen copy


def conf_dir() -> Path:
    """Return the conf/ folder beside the package."""
    return ROOT / "conf"
