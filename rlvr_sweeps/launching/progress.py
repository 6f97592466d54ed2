"""The live display of a launch: one line per run on a terminal, plain lines as things happen elsewhere."""

import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.files import read_json
from rlvr_sweeps.launching.stages import ELSEWHERE
from rlvr_sweeps.planning.plan import STYLE
from rlvr_sweeps.reporting.labels import percent
from rlvr_sweeps.runs.checkpoints import latest_complete_checkpoint, step_of
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.reading import last_rows, latest_step

PLAIN_EVERY_S = 20.0  # between two plain lines about the same run


@dataclass
class Line:
    """What is shown of one run."""

    run: Run
    cfg: Resolved
    state: str = "queued"
    began: float = 0.0
    first_step: int = 0
    said: float = 0.0
    note: str = ""


class ProgressDisplay:
    """Reads the runs' files and shows where they stand; a context manager around the launch."""

    def __init__(self, runs: list[tuple[Run, Resolved]], console: Console) -> None:
        self.lines = {run.name: Line(run, cfg) for run, cfg in runs}
        self.console = console
        self.live = Live(console=console, refresh_per_second=4, get_renderable=self.table) if console.is_terminal else None

    def __enter__(self) -> "ProgressDisplay":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def started(self, run: Run) -> None:
        line = self.lines[run.name]
        line.state, line.began, line.said, line.note = "running", time.monotonic(), time.monotonic(), ""
        line.first_step = step_of(latest_complete_checkpoint(run.checkpoints_path))
        self.say(f"{run.name}  started" + (f" from the checkpoint of step {line.first_step}" if line.first_step else ""))

    def ended(self, run: Run, code: int) -> None:
        line = self.lines[run.name]
        line.state = {0: "done", ELSEWHERE: "running"}.get(code, "failed" if code == 1 else "lost")
        self.conclude(line, f"{time.monotonic() - line.began:.0f} s, ")

    def moved(self, run: Run, state: str) -> None:
        """A run that others work on is seen in a new state."""
        if state == "running":
            self.started(run)
            return
        line = self.lines[run.name]
        line.state = state
        self.conclude(line)

    def conclude(self, line: Line, after: str = "") -> None:
        line.note = ""
        if line.state == "done":
            summary = read_json(line.run.summary_path) or {}
            line.note = f"{after}accuracy {percent(summary.get('avg'), summary.get('avg_se'))}"
        elif line.state == "failed":
            error = (read_json(line.run.failure_path) or {}).get("error") or "ended without a word"
            line.note = error.splitlines()[0]
        self.say(f"{line.run.name}  {line.state}  {line.note}".rstrip())

    def refresh(self) -> None:
        """Say something about runs that have not been heard of for a while, where there is no live table."""
        if self.live:
            return
        for line in self.lines.values():
            if line.state == "running" and time.monotonic() - line.said > PLAIN_EVERY_S:
                line.said = time.monotonic()
                self.say(f"{line.run.name}  {self.progress(line)}")

    def say(self, text: str) -> None:
        if not self.live:
            self.console.print(text, soft_wrap=True, highlight=False)

    def progress(self, line: Line) -> str:
        """`step 24/60  reward 0.41  00:31 left`, or the stage that comes after training."""
        rows = last_rows(line.run)
        steps = line.cfg["steps"]
        if not is_trained(line.cfg) or line.run.is_done("train", line.cfg):
            return "analysing" if line.run.is_done("evaluate", line.cfg) else "evaluating"
        if not rows:
            return "starting"
        step = rows[-1]["step"]
        reward = sum(row["reward_mean"] for row in rows) / len(rows)
        made = step - line.first_step
        left = (time.monotonic() - line.began) / made * (steps - step) if made > 0 else None
        eta = f"  {int(left) // 60:02d}:{int(left) % 60:02d} left" if left is not None else ""
        return f"step {step}/{steps}  reward {reward:.2f}{eta}"

    def table(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for line in self.lines.values():
            share = latest_step(line.run) / line.cfg["steps"] if is_trained(line.cfg) else float(line.state == "done")
            bar = ProgressBar(total=1.0, completed=share if line.state != "queued" else 0, width=20)
            detail = self.progress(line) if line.state == "running" and not line.note else line.note
            table.add_row(line.run.name, Text(line.state, STYLE[line.state]), bar, detail)
        return table
