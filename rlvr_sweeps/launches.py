"""A launch is an event: launches/<time>/launch.json says what was typed, which runs it meant, and how it ended."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rlvr_sweeps.compose import Point
from rlvr_sweeps.files import write_json
from rlvr_sweeps.run import Run


@contextmanager
def record(folder: Path, points: Sequence[Point]) -> Iterator[None]:
    """Write the launch before it works and again when it ends; a launch that only prints its plan leaves nothing."""
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
