"""Record each launch in launches/<time>/launch.json: its command, its runs and its outcome; lock a folder for submission."""

import fcntl
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rlvr_sweeps.config.compose import Point
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import try_lock, write_json
from rlvr_sweeps.runs.directory import Run

CANARY = ".canary"  # in a runs folder: the short run that a launch with canary=true waits for
SUBMITTING_S = 600.0  # wait for another launch that is submitting into the same folder


@contextmanager
def record_launch(folder: Path, points: Sequence[Point]) -> Iterator[None]:
    """Write launch.json when the launch starts and again when it ends; with plan=true write nothing."""
    if any(point.cfg["plan"] for point in points):
        yield
        return
    facts = {
        "command": sys.argv,
        "started": time.time(),
        "points": [{"overrides": list(point.overrides), "run": str(Run.of(point.cfg).path)} for point in points],
    }
    write_json(folder / "launch.json", facts)
    outcome = "done"
    try:
        yield
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
        raise
    finally:
        write_json(folder / "launch.json", facts | {"ended": time.time(), "outcome": outcome})


@contextmanager
def submission_lock(runs_dir: Path) -> Iterator[None]:
    """Hold the submission lock of a runs folder, since two launches at once would both submit the same missing runs.

    Raises Refused where another launch holds it for more than SUBMITTING_S.
    """
    with (runs_dir / ".submitting").open("w") as lock:
        if not try_lock(lock.fileno(), fcntl.LOCK_EX, SUBMITTING_S):
            raise Refused(f"Another launch has been submitting into {runs_dir} for {SUBMITTING_S:.0f} s. Try again later.")
        yield
