"""A run as TensorBoard event files, in `tensorboard/` of its directory.

A row is one event, so a process that is killed leaves whole rows and at most one torn record, which readers skip. Each process
writes a new file after the last step of the files that exist.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr_sweeps.reporting.tracking.names import REACH_STEP, STEP
from rlvr_sweeps.reporting.tracking.tracker import Facts, numbers

MAX_ROWS = 100  # the last rows of a table; TensorBoard draws a table as text


class TensorboardTracker:
    """The event files of one run."""

    is_complete_each_time = False
    remedy = "the mirror of the next stage writes the rest"

    def __init__(self, facts: Facts) -> None:
        self.facts, self.folder = facts, facts.run.tracker_path("tensorboard")
        self.writer: Any = None

    def begin(self, record: Mapping[str, Any]) -> dict[str, int]:
        """Open a new event file; the last steps are those of the existing files."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        steps, is_new = written_steps(self.folder), not list(event_files(self.folder))
        self.writer = EventFileWriter(str(self.folder))
        if is_new:
            labels = dict(label.split("=", 1) for label in self.facts.labels)
            self.write(0, hparams_pb({name: as_value(text) for name, text in labels.items()}, trial_id=self.facts.run.id))
        return steps

    def log(self, axis: str, values: dict[str, Any]) -> None:
        """Write a row as one event."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        rows = [Summary.Value(tag=name, simple_value=value) for name, value in numbers(values).items() if name != axis]
        self.write(values[axis], Summary(value=rows))

    def write(self, step: int, summary: Any) -> None:
        """Write an event of a step."""
        from tensorboard.compat.proto.event_pb2 import Event

        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Write out the logged rows."""
        self.writer.flush()

    def log_summary(self, step: int, summary: dict[str, Any]) -> None:
        """Write the numbers of the summary as scalars of the last step; the tab HPARAMS shows them beside the settings."""
        self.log(STEP, {STEP: step} | {f"summary/{name}": value for name, value in summary.items()})

    def log_table(self, step: int, name: str, columns: Sequence[str | int], rows: Sequence[Sequence[Any]]) -> None:
        """Write the last rows of a table as text."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        self.write(step, text_pb(name, markdown_table(columns, rows[-MAX_ROWS:])))

    def finish(self, outcome: str, files: Sequence[Path]) -> None:
        """Close the event file."""
        self.writer.close()

    def missing(self, sent: Mapping[str, int], summary: Mapping[str, Any]) -> str | None:
        """Read the files again: a full disk may have cut the last one."""
        steps = written_steps(self.folder)
        return "" if steps == dict(sent) else f"it has step {steps[STEP]} of {sent[STEP]}"

    def connection(self) -> dict[str, Any]:
        """Return the mode: event files are local."""
        return {"mode": "offline"}


def event_files(folder: Path) -> list[Path]:
    """Return the event files of a folder, the oldest first."""
    return sorted(folder.glob("events.out.tfevents.*"))


def written_steps(folder: Path) -> dict[str, int]:
    """Return the last step of each axis in the event files of a folder; a file is read up to a torn or damaged record."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    steps = {STEP: 0, REACH_STEP: 0}
    for path in event_files(folder):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag.partition("/")[0] not in ("_hparams_", "summary", "table"):
                    axis = REACH_STEP if value.tag.startswith("reach/") else STEP
                    steps[axis] = max(steps[axis], event.step)
    return steps


def as_value(text: str) -> float | str:
    """Return the number that a label states, else its text."""
    try:
        return float(text)
    except ValueError:
        return text


def markdown_table(columns: Sequence[str | int], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown; line breaks within a cell become spaces."""
    lines = [[str(name) for name in columns], ["---"] * len(columns), *([cell_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell_text(value: Any) -> str:
    """Return a cell of a Markdown table."""
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
