"""`rlvr status`: where every run of a folder stands, from its files, and from the queue where there is a Slurm."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live as LiveDisplay
from rich.table import Table
from rich.text import Text

from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.launching.slurm import queue
from rlvr_sweeps.planning.plan import STYLE
from rlvr_sweeps.reporting.labels import percent
from rlvr_sweeps.runs.directory import Job, Run
from rlvr_sweeps.runs.reading import RunStatus, find_runs, last_rows

Row = dict[str, Any]
IN_SLURM = ("job", "node", "tries", "requeues", "heartbeat_s")  # columns where a run was submitted
IN_SLURM_SHOWN = (*IN_SLURM[:-1], "beat")


def rows(runs_dir: Path, sweep: str | None = None) -> list[Row]:
    """One plain row per run, of one sweep where its label is given: what --json prints."""
    live = queue.active_jobs_if_reachable()
    found = [item for item in find_runs(runs_dir, live) if sweep is None or (item.cfg and item.cfg["sweep"] == sweep)]
    shown = [row(item, live or {}) for item in found]
    lost = {item["job"]: item for item in shown if item["state"] == "lost" and item["job"]}
    for job, state in (queue.final_states(lost) if live is not None else {}).items():
        if job in lost:
            lost[job]["error"] = f"Slurm says {state} of job {job}"
    return shown


def row(found: RunStatus, live: Mapping[str, Job]) -> Row:
    summary = found.summary if found.state == "done" else {}
    steps = found.cfg["steps"] if found.cfg and found.cfg["peft"]["trains"] != "nothing" else None
    recent = [] if found.state == "done" else last_rows(found.run)
    reward = sum(step["reward_mean"] for step in recent) / len(recent) if recent else summary.get("reward_last")
    return {
        "run": found.run.name,
        "state": found.state,
        "step": summary.get("steps_done", steps) if summary else (recent[-1]["step"] if recent else None),
        "steps": steps,
        "reward": reward,
        "avg": summary.get("avg"),
        "avg_se": summary.get("avg_se"),
        "error": found.error or (last_words(found.run) if found.state == "lost" else ""),
        **(in_slurm(found, live) if read_json(found.run.submission_path) else dict.fromkeys(IN_SLURM)),
    }


def last_words(run: Run) -> str:
    """What a lost run's own events say of its end."""
    last = (read_rows(run.attempts_path) or [{"event": "none"}])[-1]
    how = {"stopped": f"ended by {last.get('signal') or 'a request to stop'}", "cancelled": "taken out by rlvr cancel"}
    return how.get(last["event"], "ended without a word: killed, or its node was lost")


def in_slurm(found: RunStatus, live: Mapping[str, Job]) -> Row:
    """The job a submitted run is in, or was last in; tries and requeues over all its attempts."""
    run = found.run
    jobs = run.jobs()
    now = [(name, live[name]) for name in jobs.values() if name in live]
    name, job = next((pair for pair in now if not pair[1].is_pending), now[0] if now else ("", None))
    events = read_rows(run.attempts_path)
    starts = [event for event in events if event["event"] == "start"]
    at_work = found.state == "running" and run.heartbeat_path.exists()
    return {
        "job": name or list(jobs.values())[-1],
        "node": (job.node or job.reason) if job else (starts[-1].get("node_name") if starts else None),
        "tries": len(starts),
        "requeues": sum(event["event"] == "requeue" for event in events),
        "heartbeat_s": round(time.time() - run.heartbeat_path.stat().st_mtime, 1) if at_work else None,
    }


def table(found: list[Row]) -> RenderableType:
    """A column is one text of many lines: rich lays a thousand rows of cells out in three times the time."""
    submitted = any(item["job"] for item in found)
    shown = Table(box=None, pad_edge=False, header_style="dim")
    names = ("run", "state", "step", "reward", "accuracy %", *(IN_SLURM_SHOWN if submitted else ()))
    for column in names:
        shown.add_column(column, justify="left" if column in ("run", "state") else "right", no_wrap=True)
    lines: list[list[str | Text]] = []
    for item in found:
        step = "-" if item["steps"] is None else f"{item['step'] or 0}/{item['steps']}"
        reward = "-" if item["reward"] is None else f"{item['reward']:.2f}"
        state = Text(item["state"], STYLE.get(item["state"], "red"))
        beat = "-" if item["heartbeat_s"] is None else f"{item['heartbeat_s']:.0f} s"
        slurm_cells = [shortened(str(item[key] if item[key] is not None else "-")) for key in IN_SLURM[:-1]] + [beat]
        cells: list[str | Text] = [item["run"], state, step, reward, percent(item["avg"], item["avg_se"])]
        lines.append([*cells, *(slurm_cells if submitted else [])])
    if lines:
        shown.add_row(*(Text("\n").join(map(as_text, column)) for column in zip(*lines, strict=True)))
    counts = {state: sum(item["state"] == state for item in found) for state in sorted({item["state"] for item in found})}
    words = f"{len(found)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items()) if found else "no runs"
    errors = [Text(f"{item['run']}: {item['error'].splitlines()[0]}", "red") for item in found if item["error"]]
    return Group(shown, *errors, Text(words))


def shortened(cell: str) -> str:
    """A node's name, or Slurm's reason for waiting: either may be long, and the state beside it must be read."""
    return cell if len(cell) <= 24 else f"{cell[:23]}…"


def as_text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def show(runs_dir: Path, console: Console, sweep: str | None = None) -> None:
    console.print(table(rows(runs_dir, sweep)))


def watch(runs_dir: Path, console: Console, every_s: float, sweep: str | None = None) -> None:
    """The table, drawn again until nothing is queued or at work."""
    with LiveDisplay(console=console, auto_refresh=False) as display:
        while True:
            found = rows(runs_dir, sweep)
            display.update(table(found), refresh=True)
            if not any(item["state"] in ("queued", "running") for item in found):
                return
            time.sleep(every_s)


def as_json(runs_dir: Path, sweep: str | None = None) -> str:
    return json.dumps(rows(runs_dir, sweep), indent=1)
