"""Read runs from a runs folder: their states, logs and latest metrics; find a run by its name or id."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.errors import Damaged, Edited, Refused
from rlvr_sweeps.files import Row, parse_row, read_object
from rlvr_sweeps.runs.directory import Live, Run, all_runs
from rlvr_sweeps.runs.launches import CANARY
from rlvr_sweeps.runs.rollouts import reason_shares


@dataclass(frozen=True)
class RunStatus:
    """A run on disk: its configuration (None where it was edited or is unreadable), its state, and the error that explains it.

    `error`: of a failed, edited or unreadable run; that of an unreadable one names the damaged file.
    """

    run: Run
    cfg: Resolved | None
    state: str
    error: str = ""

    @property
    def summary(self) -> Row:
        """The run's summary.json; empty where there is none. Raises Damaged."""
        return read_object(self.run.summary_path) or {}

    @property
    def evaluated(self) -> bool:
        """Whether the evaluation that the configuration describes has finished, with or without the analysis after it."""
        if self.cfg is None or self.state == "unreadable":
            return False
        return self.state == "done" or self.run.is_done("evaluate", self.cfg)

    def unreadable(self, damage: Damaged) -> "RunStatus":
        """Return the status of this run once a file of it proved damaged."""
        return RunStatus(self.run, self.cfg, "unreadable", str(damage))


def find_runs(runs_dir: Path, live: Live | None = None) -> list[RunStatus]:
    """Return every run in a folder with its state; `live`: the jobs that Slurm lists. A damaged run is `unreadable`."""
    return [status_of(run, live) for run in all_runs(runs_dir)]


def status_of(run: Run, live: Live | None = None) -> RunStatus:
    """Return a run with its state."""
    cfg: Resolved | None = None
    try:
        cfg = run.config()
        state = run.state_of(cfg, live)
        failure = run.failure() if state == "failed" else None
        return RunStatus(run, cfg, state, str(failure["error"]) if failure else "")
    except Edited as edit:
        return RunStatus(run, None, "edited", str(edit))
    except Damaged as damage:
        return RunStatus(run, cfg, "unreadable", str(damage))


def failed_canary(runs_dir: Path, live: Live | None = None) -> str | None:
    """Return which canary of a runs folder failed, and why, for a display; None without a failed one."""
    for status in find_runs(runs_dir / CANARY, live):
        if status.state in ("failed", "lost", "unreadable"):
            error = status.error or "its job ended without an error message"
            return f"The canary {status.run.name} {status.state}: {error} Its output: rlvr logs {status.run.path}"
    return None


def named_run(name: str, runs_dir: Path) -> Run:
    """Return a run by its directory, its name or its id; raise Refused, with the nearest name, where there is no such run."""
    for path in (Path(name), runs_dir / name):
        if (path / "config.yaml").exists():
            return Run(path.absolute())
    runs = all_runs(runs_dir)
    by_id = [run for run in runs if run.id == name]
    if len(by_id) == 1:
        return by_id[0]
    near = difflib.get_close_matches(name, [run.name for run in runs], 1, 0.3)
    advice = f"Did you mean {near[0]}?" if near else f"List the runs: rlvr status {runs_dir}."
    raise Refused(f"There is no run {name} in {runs_dir}. {advice}")


def log_files(run: Run, stage: str | None) -> list[Path]:
    """Return a run's log files, oldest first, of one stage or (None) of all; raise Refused where there is none."""
    files = [path for path in (run.path / "logs").glob(f"{stage or ''}*.txt") if path.is_file()]
    paths = sorted(files, key=lambda path: path.stat().st_mtime)
    if not paths:
        raise Refused(f"{run.name} has no log{f' of {stage}' if stage else ''} yet.")
    return paths


def tail(path: Path, lines: int) -> str:
    """Return the last `lines` lines of a file; all lines for 0."""
    text = path.read_text(errors="replace")
    return "".join(text.splitlines(keepends=True)[-lines:])


REWARD_WINDOW = 10  # steps over which the displayed reward is averaged
PHASES = ("rollout_s", "reward_s", "logprobs_s", "update_s")  # columns of metrics.jsonl: seconds of a step's phases
STEP_SECONDS = (*PHASES, "rest_s")  # the columns whose sum is the duration of a step


def last_rows(run: Run, window: int = REWARD_WINDOW, keys: Sequence[str] = ("step", "reward_mean")) -> list[dict[str, Any]]:
    """Return the last `window` complete rows of metrics.jsonl, or fewer; only the end of the file is read.

    Raises Damaged for a row that is not an object with all `keys`; the number of its line counts from the end of the file.
    """
    try:
        with run.metrics_path.open("rb") as file:
            file.seek(0, 2)
            start = max(0, file.tell() - 4000 * window)
            file.seek(start)
            lines = file.read().split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise Damaged(run.metrics_path, f"it cannot be read ({error.strerror})") from None
    if start:  # the part that was read may begin within a row
        lines = lines[1:]
    lines = lines[-window:]
    return [parse_row(run.metrics_path, number, line, keys) for number, line in enumerate(lines, -len(lines))]


def no_signal(rows: Sequence[Row]) -> str | None:
    """Return `no signal for 3 steps: 100% no box` where every group of the last steps was all right or all wrong, else None.

    `rows` are the last rows of metrics.jsonl. If none of them has a signal and earlier ones exist: `for at least 10 steps`.
    The reason is the most frequent one of the last step.
    """
    steps = 0
    for row in reversed(rows):
        if row.get("trained_zero_std_share") != 1:
            break
        steps += 1
    if not steps:
        return None
    reason, share = next(iter(reason_shares(rows[-1]).items()), ("equal rewards", 1.0))
    at_least = "at least " * (steps == len(rows) and rows[0]["step"] > 1)
    return f"no signal for {at_least}{steps} step{'s' * (steps > 1)}: {share:.0%} {reason}"


def latest_step(run: Run) -> int:
    """Return the last optimizer step in metrics.jsonl; 0 before the first."""
    rows = last_rows(run, 1, ("step",))
    return int(rows[-1]["step"]) if rows else 0
