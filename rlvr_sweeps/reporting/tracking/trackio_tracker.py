"""A run in Trackio: in the local database of TRACKIO_DIR, or on a Hugging Face Space (`tracking.space_id`).

The local database has the last step. A Space is not asked: the run's mirror file records what the SDK was given, and the SDK
keeps what it could not send, to send it later.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr_sweeps import patches
from rlvr_sweeps.config.schema import leaves
from rlvr_sweeps.reporting.tracking.names import REACH_STEP, STEP
from rlvr_sweeps.reporting.tracking.tracker import Facts, last_steps, numbers

REMOTE_VARIABLES = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class TrackioTracker:
    """One Trackio run, under the name and the id of the run."""

    is_complete_each_time = False
    remedy = "the mirror of the next stage writes the rest"

    def __init__(self, facts: Facts) -> None:
        self.facts, self.project, self.space = facts, facts.settings["project"], facts.settings.get("space_id")
        if facts.settings["mode"] == "offline":
            self.space = None
            for name in REMOTE_VARIABLES:
                os.environ.pop(name, None)
        self.is_local = not self.space and not any(os.environ.get(name) for name in REMOTE_VARIABLES)
        if self.is_local:
            os.environ["HF_HUB_OFFLINE"] = "1"  # the SDK would ask the hub for the name of the user
        self.trackio: Any = None  # the SDK's run

    def begin(self, record: Mapping[str, Any]) -> dict[str, int]:
        """Open or continue the run; raises what the SDK raises."""
        import trackio

        steps = self.stored_steps() if self.is_local else last_steps(record)
        config = dict(leaves(self.facts.cfg)) | {"id": self.facts.run.id}
        self.trackio = trackio.init(
            self.project, name=self.facts.run.name, group=self.facts.cfg["sweep"], config=config, resume="allow",
            space_id=self.space, embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        self.trackio.id = self.facts.run.id  # the SDK draws one, and a server that was away would get a second run of this name
        if not self.is_local:
            patches.send_what_trackio_kept(self.trackio)
        return steps

    def stored_steps(self) -> dict[str, int]:
        """Return the last step of each axis in the local database."""
        from trackio.sqlite_storage import SQLiteStorage

        steps = {STEP: 0, REACH_STEP: 0}
        for row in SQLiteStorage.get_logs(self.project, run_id=self.facts.run.id):
            families = {name.partition("/")[0] for name in row}
            if not families & {"summary", "table"}:
                axis = REACH_STEP if "reach" in families else STEP
                steps[axis] = max(steps[axis], row["step"])
        return steps

    def log(self, axis: str, values: dict[str, Any]) -> None:
        """Log a row; the SDK writes it in the background."""
        self.trackio.log({name: value for name, value in values.items() if name != axis}, step=values[axis])

    def flush(self) -> None:
        """Do nothing: the SDK writes every half second."""

    def log_summary(self, step: int, summary: dict[str, Any]) -> None:
        """Log the numbers of the summary as values of the last step."""
        self.trackio.log({f"summary/{name}": value for name, value in numbers(summary).items()}, step=step)

    def log_table(self, step: int, name: str, columns: Sequence[str | int], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""
        import trackio

        table = trackio.Table(columns=[str(column) for column in columns], data=[list(row) for row in rows])
        self.trackio.log({name: table}, step=step)

    def finish(self, outcome: str, files: Sequence[Path]) -> None:
        """Wait for the SDK's last rows and close the run."""
        import trackio

        trackio.finish()  # the run's own finish() would be called again, and print, at the end of the process

    def missing(self, sent: Mapping[str, int], summary: Mapping[str, Any]) -> str | None:
        """Read the local database again: the SDK only warns of rows that it could not write."""
        if not self.is_local:
            return None
        steps = self.stored_steps()
        return "" if steps == dict(sent) else f"it has step {steps[STEP]} of {sent[STEP]}"

    def connection(self) -> dict[str, Any]:
        """Return the mode, and where the run can be seen: the Space, or the server without its write token."""
        if self.is_local:
            return {"mode": "offline"}
        server = self.space or os.environ.get("TRACKIO_SPACE_ID") or os.environ["TRACKIO_SERVER_URL"].partition("?")[0]
        return {"mode": "online", "url": server}
