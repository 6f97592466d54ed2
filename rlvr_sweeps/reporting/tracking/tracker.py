"""The protocol of a tracker: what a mirror calls, in this order. `TRACKERS` of `mirror` names the classes that implement it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import dial_values
from rlvr_sweeps.reporting.tracking.names import REACH_STEP, STEP, tags
from rlvr_sweeps.runs.directory import Run


@dataclass(frozen=True)
class Facts:
    """What a tracker needs to know of the run that it shows."""

    run: Run
    cfg: Resolved
    settings: dict[str, Any]  # with the keys of TrackingConf
    stage_pid: int  # process of the stage; 0 where the run is sent afterwards

    @property
    def labels(self) -> list[str]:
        """The run's labels: `peft=lora`, `rank=8`, …"""
        return tags(self.cfg, dial_values(self.cfg))


class Tracker(Protocol):
    """One run at one tracker. A method may raise any error: the mirror ends, the run does not."""

    is_complete_each_time: bool  # whether each mirror sends summary and tables again, also unchanged ones
    remedy: str  # what sends the rest after an outage, for the line in the stage's log

    def __init__(self, facts: Facts) -> None: ...

    def begin(self, record: Mapping[str, Any]) -> dict[str, int]:
        """Open or continue the run; return the last step that the tracker has on each axis, STEP and REACH_STEP.

        `record` is the content of the run's mirror file for this tracker, empty for a new run.
        """

    def log(self, axis: str, values: dict[str, Any]) -> None:
        """Log a row; its step is `values[axis]`."""

    def flush(self) -> None:
        """Write out the logged rows, as far as the tracker does not do it by itself."""

    def log_summary(self, step: int, summary: dict[str, Any]) -> None:
        """Log the results of the run."""

    def log_table(self, step: int, name: str, columns: Sequence[str | int], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""

    def finish(self, outcome: str, files: Sequence[Path]) -> None:
        """Close the run after its stage has ended with `outcome`; `files`: the small files of a completed stage."""

    def missing(self, sent: Mapping[str, int], summary: Mapping[str, Any]) -> str | None:
        """Return what the tracker lacks of the sent rows and the summary: an empty text for nothing, None for unknown."""

    def connection(self) -> dict[str, Any]:
        """Return `mode`, and where the run can be seen, for the mirror file."""


def last_steps(record: Mapping[str, Any]) -> dict[str, int]:
    """Return the last step of each axis in a mirror file; 0 where it has none."""
    return {axis: int((record.get("sent") or {}).get(axis) or 0) for axis in (STEP, REACH_STEP)}


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the values that are numbers, for trackers that draw nothing else."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
