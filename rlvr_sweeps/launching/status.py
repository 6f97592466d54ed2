"""`rlvr status`: the state of every run of a folder, from its files and, where Slurm is installed, from its queue."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live as LiveDisplay
from rich.table import Table
from rich.text import Text

from rlvr_sweeps.errors import Damaged
from rlvr_sweeps.files import Row, read_rows
from rlvr_sweeps.launching.slurm import queue
from rlvr_sweeps.planning.plan import STYLE
from rlvr_sweeps.reporting.labels import percent
from rlvr_sweeps.runs.directory import Job, Live, NoAnswer, Run
from rlvr_sweeps.runs.reading import RunStatus, find_runs, last_rows, no_signal

SLURM_KEYS = ("job", "node", "tries", "requeues", "heartbeat_s")  # of a row; None in rows of runs that were not submitted
SLURM_COLUMNS = (*SLURM_KEYS[:-1], "heartbeat")


def rows(runs_dir: Path, sweep: str | None = None) -> list[Row]:
    """Return one row per run, as `--json` prints them; `sweep`: only runs with this label."""
    return rows_of(runs_dir, sweep, queue.active_jobs_if_reachable())


def rows_of(runs_dir: Path, sweep: str | None, active: Live | None) -> list[Row]:
    """Return the rows for the jobs that Slurm lists."""
    statuses = [
        status for status in find_runs(runs_dir, active) if sweep is None or (status.cfg and status.cfg["sweep"] == sweep)
    ]
    result = [row(status, active or {}) for status in statuses]
    lost = {entry["job"]: entry for entry in result if entry["state"] == "lost" and entry["job"]}
    for job, state in ({} if active is None or isinstance(active, NoAnswer) else queue.final_states(lost)).items():
        if job in lost:
            lost[job]["error"] = f"Slurm job {job} ended as {state}"
    return result


def row(status: RunStatus, active: Mapping[str, Job]) -> Row:
    """Return one run's row: its state, steps, reward (the mean of the last steps) and accuracy, its error, its Slurm job.

    A run that proves damaged here becomes unreadable: none of its numbers is shown, only the damaged file.
    """
    if status.state != "unreadable":
        try:
            return readable_row(status, active)
        except Damaged as damage:
            status = status.unreadable(damage)
    numbers = dict.fromkeys(("step", "steps", "reward", "avg", "avg_se", "no_signal"))
    return {
        "run": status.run.name, "state": status.state, **numbers, "error": status.error, **dict.fromkeys(SLURM_KEYS)
    }  # fmt: skip


def readable_row(status: RunStatus, active: Mapping[str, Job]) -> Row:
    """Return the row of a run whose files can be read; raise Damaged where one cannot."""
    summary = status.summary if status.state == "done" else {}
    steps = status.cfg["steps"] if status.cfg and status.cfg["peft"]["trains"] != "nothing" else None
    recent = [] if status.state == "done" else last_rows(status.run)
    reward = sum(step["reward_mean"] for step in recent) / len(recent) if recent else summary.get("reward_last")
    return {
        "run": status.run.name,
        "state": status.state,
        "step": summary.get("steps_done", steps) if summary else (recent[-1]["step"] if recent else None),
        "steps": steps,
        "reward": reward,
        "avg": summary.get("avg"),
        "avg_se": summary.get("avg_se"),
        "no_signal": no_signal(recent) if status.state in ("running", "lost", "failed") else None,
        "error": status.error or (reason_of_loss(status.run) if status.state == "lost" else ""),
        **(slurm_facts(status, active) if status.run.submission() else dict.fromkeys(SLURM_KEYS)),
    }


def reason_of_loss(run: Run) -> str:
    """Return how a lost run ended, from the last event in its attempts.jsonl."""
    last = (read_rows(run.attempts_path, "event") or [{"event": "none"}])[-1]
    reasons = {"stopped": f"ended by {last.get('signal') or 'a request to stop'}", "cancelled": "cancelled by rlvr cancel"}
    return reasons.get(last["event"], "ended without an error message: it was killed, or its node was lost")


def slurm_facts(status: RunStatus, active: Mapping[str, Job]) -> Row:
    """Return the row's Slurm columns: the run's active job, else its last one; tries and requeues count all attempts.

    `node` is the job's node, or Slurm's reason why the job waits.
    """
    run = status.run
    jobs = run.jobs()
    own = [(name, active[name]) for name in jobs.values() if name in active]
    name, job = next((pair for pair in own if not pair[1].is_pending), own[0] if own else ("", None))
    events = read_rows(run.attempts_path, "event")
    starts = [event for event in events if event["event"] == "start"]
    has_heartbeat = status.state == "running" and run.heartbeat_path.exists()
    return {
        "job": name or list(jobs.values())[-1],
        "node": (job.node or job.reason) if job else (starts[-1].get("node_name") if starts else None),
        "tries": len(starts),
        "requeues": sum(event["event"] == "requeue" for event in events),
        "heartbeat_s": round(time.time() - run.heartbeat_path.stat().st_mtime, 1) if has_heartbeat else None,
    }


def table(entries: list[Row], no_answer: str | None = None) -> RenderableType:
    """Return the table, the runs' errors, and a line that counts states; `no_answer`: why runs are unknown.

    A column is one text of many lines: rich needs three times as long to lay out a thousand rows of cells.
    """
    submitted = any(entry["job"] for entry in entries)
    grid = Table(box=None, pad_edge=False, header_style="dim")
    names = ("run", "state", "step", "reward", "accuracy %", *(SLURM_COLUMNS if submitted else ()))
    for column in names:
        grid.add_column(column, justify="left" if column in ("run", "state") else "right", no_wrap=True)
    lines: list[list[str | Text]] = []
    for entry in entries:
        step = "-" if entry["steps"] is None else f"{entry['step'] or 0}/{entry['steps']}"
        reward = "-" if entry["reward"] is None else f"{entry['reward']:.2f}"
        state = Text(entry["state"], STYLE.get(entry["state"], "red"))
        heartbeat = "-" if entry["heartbeat_s"] is None else f"{entry['heartbeat_s']:.0f} s"
        slurm_cells = [shortened(str(entry[key] if entry[key] is not None else "-")) for key in SLURM_KEYS[:-1]] + [heartbeat]
        cells: list[str | Text] = [entry["run"], state, step, reward, percent(entry["avg"], entry["avg_se"])]
        lines.append([*cells, *(slurm_cells if submitted else [])])
    if lines:
        grid.add_row(*(Text("\n").join(map(as_text, column)) for column in zip(*lines, strict=True)))
    counts = {
        state: sum(entry["state"] == state for entry in entries) for state in sorted({entry["state"] for entry in entries})
    }
    total = (
        f"{len(entries)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items()) if entries else "no runs"
    )
    errors = [Text(f"{entry['run']}: {entry['error'].splitlines()[0]}", "red") for entry in entries if entry["error"]]
    warnings = [Text(f"{entry['run']}: {entry['no_signal']}", "yellow") for entry in entries if entry["no_signal"]]
    is_unknown = any(entry["state"] == "unknown" for entry in entries)
    unreachable = [Text(f"Slurm does not answer: {no_answer}", "yellow")] if no_answer and is_unknown else []
    return Group(grid, *warnings, *errors, *unreachable, Text(total))


def shortened(cell: str) -> str:
    """Cut a node's name or Slurm's reason for waiting to 24 characters, so that the other columns stay readable."""
    return cell if len(cell) <= 24 else f"{cell[:23]}…"


def as_text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def show(runs_dir: Path, console: Console, sweep: str | None = None) -> None:
    """Print the table once."""
    active = queue.active_jobs_if_reachable()
    console.print(table(rows_of(runs_dir, sweep, active), reason_of_silence(active)))


def reason_of_silence(active: Live | None) -> str | None:
    """Return why Slurm does not answer; None where it does, or is not installed."""
    return active.reason if isinstance(active, NoAnswer) else None


def watch(runs_dir: Path, console: Console, every_s: float, sweep: str | None = None) -> None:
    """Redraw the table every `every_s` seconds until no run is queued, running or, while Slurm does not answer, unknown."""
    with LiveDisplay(console=console, auto_refresh=False) as display:
        while True:
            active = queue.active_jobs_if_reachable()
            current = rows_of(runs_dir, sweep, active)
            display.update(table(current, reason_of_silence(active)), refresh=True)
            if not any(entry["state"] in ("queued", "running", "unknown") for entry in current):
                return
            time.sleep(every_s)


def as_json(runs_dir: Path, sweep: str | None = None) -> str:
    """Return the rows as JSON."""
    return json.dumps(rows(runs_dir, sweep), indent=1)
