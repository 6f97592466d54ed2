"""`rlvr status`: where every run of a folder stands, from its files."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlvr_sweeps.collect import Found, find
from rlvr_sweeps.plan import STYLE
from rlvr_sweeps.watch import last_rows, percent


def rows(runs_dir: Path) -> list[dict[str, Any]]:
    """One plain row per run: what --json prints."""
    return [row(found) for found in find(runs_dir)]


def row(found: Found) -> dict[str, Any]:
    summary = found.summary if found.state == "done" else {}
    steps = found.cfg["steps"] if found.cfg and found.cfg["peft"]["trains"] != "nothing" else None
    recent = [] if found.state == "done" else last_rows(found.run)
    reward = sum(step["reward_mean"] for step in recent) / len(recent) if recent else summary.get("reward_last")
    return {
        "run": found.run.name,
        "state": found.state,
        "step": steps if summary else (recent[-1]["step"] if recent else None),
        "steps": steps,
        "reward": reward,
        "avg": summary.get("avg"),
        "avg_se": summary.get("avg_se"),
        "error": found.error,
    }


def show(runs_dir: Path, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for column in ("step", "reward", "accuracy %"):
        table.add_column(column, justify="right")
    table.add_column("error", overflow="ellipsis", no_wrap=True)
    found = rows(runs_dir)
    for item in found:
        step = "-" if item["steps"] is None else f"{item['step'] or 0}/{item['steps']}"
        reward = "-" if item["reward"] is None else f"{item['reward']:.2f}"
        error = item["error"].splitlines()[0] if item["error"] else ""
        state = Text(item["state"], STYLE.get(item["state"], "red"))
        table.add_row(item["run"], state, step, reward, percent(item["avg"], item["avg_se"]), error)
    console.print(table)
    counts = {state: sum(item["state"] == state for item in found) for state in sorted({item["state"] for item in found})}
    console.print(
        f"{len(found)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items()) if found else "no runs"
    )


def as_json(runs_dir: Path) -> str:
    return json.dumps(rows(runs_dir), indent=1)
