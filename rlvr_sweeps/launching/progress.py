"""The display of a running launch: a table that refreshes on a terminal; elsewhere plain lines, one per change of a run."""

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
from rlvr_sweeps.errors import Damaged
from rlvr_sweeps.files import Row, read_object
from rlvr_sweeps.launching.stages import ELSEWHERE, FAILED
from rlvr_sweeps.planning.plan import STYLE
from rlvr_sweeps.reporting.labels import percent
from rlvr_sweeps.runs.checkpoints import latest_complete_checkpoint, step_of
from rlvr_sweeps.runs.directory import Run, State
from rlvr_sweeps.runs.reading import STEP_SECONDS, last_rows, latest_step, no_signal, status_of

LONG_STEP_S = 20.0  # of a step; then its phase is shown
PLAIN_INTERVAL_S = 20.0  # between two plain lines about the progress of the same run


def time_left(run: Run, rows: list[Row], steps: int) -> str:
    """Return `  00:31 left` for `steps` more steps of the mean duration of the last rows.

    The time since the last row is subtracted, up to one step, so that the value does not grow while a step runs.
    """
    step_s = sum(row.get(column, 0.0) for row in rows for column in STEP_SECONDS) / len(rows)
    try:
        running_s = time.time() - run.metrics_path.stat().st_mtime
    except FileNotFoundError:  # removed since it was read
        return ""
    left_s = int(step_s * steps - min(max(running_s, 0.0), step_s)) if steps else 0
    return f"  {left_s // 60:02d}:{left_s % 60:02d} left"


@dataclass
class Line:
    """The display's state of one run; `started_at` and `printed_at` are times of the monotonic clock."""

    run: Run
    cfg: Resolved
    state: str = "queued"
    started_at: float = 0.0
    first_step: int = 0  # the step of the checkpoint that it resumed from
    printed_at: float = 0.0
    printed: str = ""  # the last plain line about the progress
    note: str = ""  # shown in place of the progress: the accuracy or the error


class ProgressDisplay:
    """Read the runs' files and show their state and progress; a context manager around the launch."""

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

    def run_started(self, run: Run) -> None:
        """Show that a run works, and the step of the checkpoint that it resumes from."""
        line = self.lines[run.name]
        line.state, line.note = "running", ""
        line.started_at = line.printed_at = time.monotonic()
        line.first_step = step_of(latest_complete_checkpoint(run.checkpoints_path))
        self.print_line(f"{run.name}  started" + (f" from the checkpoint of step {line.first_step}" if line.first_step else ""))

    def run_ended(self, run: Run, code: int) -> None:
        """Show how a run of this launch ended; `code` is its exit code, of rlvr_sweeps.launching.stages."""
        line = self.lines[run.name]
        line.state = {0: "done", ELSEWHERE: "running"}.get(code, "failed" if code == FAILED else "lost")
        self.show_outcome(line, f"{time.monotonic() - line.started_at:.0f} s, ")

    def run_changed(self, run: Run, state: State) -> None:
        """Show the new state of a run that other processes work on, such as Slurm jobs."""
        if state == "running":
            self.run_started(run)
            return
        line = self.lines[run.name]
        line.state = state
        self.show_outcome(line)

    def show_outcome(self, line: Line, duration: str = "") -> None:
        """Show a run's accuracy or its error."""
        line.note = ""
        try:
            line.note = self.outcome(line, duration)
        except Damaged as damage:
            line.state, line.note = "unreadable", str(damage)
        self.print_line(f"{line.run.name}  {line.state}  {line.note}".rstrip())

    def outcome(self, line: Line, duration: str) -> str:
        """Return a run's accuracy or its error; empty where it has neither. Raises Damaged."""
        if line.state == "done":
            summary = read_object(line.run.summary_path) or {}
            return f"{duration}accuracy {percent(summary.get('avg'), summary.get('avg_se'))}"
        if line.state == "failed":
            error = str((line.run.failure() or {}).get("error") or "ended without an error message")
            return error.splitlines()[0]
        if line.state == "unreadable":
            return status_of(line.run).error
        return ""

    def refresh(self) -> None:
        """Without a terminal: print the progress of every running run whose last line is PLAIN_INTERVAL_S old."""
        if self.live:
            return
        for line in self.lines.values():
            if line.state == "running" and time.monotonic() - line.printed_at > PLAIN_INTERVAL_S:
                line.printed_at = time.monotonic()
                text = self.progress(line)
                if text != line.printed:
                    line.printed = text
                    self.print_line(f"{line.run.name}  {text}")

    def print_line(self, text: str) -> None:
        """Print a plain line; nothing on a terminal, where the table shows it."""
        if not self.live:
            self.console.print(text, soft_wrap=True, highlight=False)

    def progress(self, line: Line) -> str:
        """Return `step 24/60  reward 0.41  00:31 left` for a training run, else the stage it is in.

        After the last step, and if steps take longer than LONG_STEP_S, the phase is shown too, such as `sampling round 4 of at
        most 10`. In place of
        numbers from a damaged file, the file is named.
        """
        try:
            return self.readable_progress(line)
        except Damaged as damage:
            return str(damage)

    def readable_progress(self, line: Line) -> str:
        """Return `progress`; raise Damaged where a file cannot be read."""
        rows = last_rows(line.run)
        steps = line.cfg["steps"]
        if not is_trained(line.cfg) or line.run.is_done("train", line.cfg):
            return "analysing" if line.run.is_done("evaluate", line.cfg) else "evaluating"
        phase = line.run.phase() or "starting"
        if not rows:
            return str(phase)
        step = rows[-1]["step"]
        reward = sum(row["reward_mean"] for row in rows) / len(rows)
        text = f"step {step}/{steps}  reward {reward:.2f}{time_left(line.run, rows, steps - step)}"
        if step == steps or sum(rows[-1].get(column, 0.0) for column in STEP_SECONDS) > LONG_STEP_S:
            text += f"  {phase}"
        return f"{text}  {warning}" if (warning := no_signal(rows)) else text

    def fraction(self, line: Line) -> float:
        """Return the share of a run's steps that it has done; 0 where they cannot be read."""
        try:
            return latest_step(line.run) / line.cfg["steps"] if is_trained(line.cfg) else float(line.state == "done")
        except Damaged:  # `progress` names the file
            return 0.0

    def table(self) -> RenderableType:
        """Return the table: name, state, progress bar and progress or outcome of every run."""
        table = Table.grid(padding=(0, 2))
        for line in self.lines.values():
            fraction = self.fraction(line)
            bar = ProgressBar(total=1.0, completed=fraction if line.state != "queued" else 0, width=20)
            detail = self.progress(line) if line.state == "running" and not line.note else line.note
            table.add_row(line.run.name, Text(line.state, STYLE[line.state]), bar, detail)
        return table
