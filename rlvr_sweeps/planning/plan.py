"""Plan a launch: the distinct runs of a grid, their states, and what the launch does with each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlvr_sweeps.config.compose import Point
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained, modules_of, rank_of
from rlvr_sweeps.errors import Damaged
from rlvr_sweeps.runs.directory import Live, Run, State

STYLE = {
    "new": "cyan", "running": "yellow", "done": "green", "failed": "red", "lost": "magenta", "stale": "cyan",
    "queued": "blue", "unknown": "yellow", "unreadable": "red",
}  # fmt: skip
TO_RUN: tuple[State, ...] = ("new", "lost", "stale")


@dataclass(frozen=True)
class Planned:
    """A run of the grid, its state, and whether this launch will work on it."""

    run: Run
    cfg: Resolved
    state: State
    to_run: bool
    point_count: int  # number of points of the grid that are this run
    damage: str = ""  # of an unreadable run: the damaged file, and what to do


def make_plan(points: Iterable[Point], retry: bool, live: Live | None = None) -> list[Planned]:
    """Return one entry per distinct run, in the order of the grid; failed runs are run again only with `retry`.

    A run with a damaged file is unreadable, and left alone.
    """
    by_name: dict[str, list[Point]] = {}
    for point in points:
        by_name.setdefault(Run.of(point.cfg).name, []).append(point)
    plan = []
    for same in by_name.values():
        cfg = same[0].cfg
        run, damage = Run.of(cfg), ""
        state: State
        try:
            state = run.state(cfg, live)
        except Damaged as error:
            state, damage = "unreadable", str(error)
        plan.append(Planned(run, cfg, state, state in TO_RUN or (retry and state == "failed"), len(same), damage))
    return plan


def action(planned: Planned) -> str:
    """Return what this launch does with a run, as text."""
    if planned.state == "failed":
        return "run again" if planned.to_run else "left alone (retry=true runs it again)"
    only_analyse = planned.state == "stale" and planned.run.is_done("evaluate", planned.cfg)
    return {
        "new": "train and evaluate" if is_trained(planned.cfg) else "evaluate",
        "lost": "continue from its checkpoint",
        "stale": "analyse" if only_analyse else "evaluate with the new settings",
        "running": "left alone (it is running)",
        "queued": "left alone (it is queued)",
        "unknown": "left alone (Slurm does not answer)",
        "done": "left alone",
        "unreadable": "left alone (a file is damaged)",
    }[planned.state]


def columns(plan: Sequence[Planned]) -> list[dict[str, float | int | str | None]]:
    """Return each run's dials by column; the modules are among them where a run targets a part of the linear modules."""
    modules = [modules_of(planned.cfg) if is_trained(planned.cfg) else None for planned in plan]
    shown = {"attention", "mlp"} & set(modules)
    return [
        dict[str, float | int | str | None]({"modules": chosen} if shown else {}) | dials(planned.cfg)
        for chosen, planned in zip(modules, plan, strict=True)
    ]


def dials(cfg: Resolved) -> dict[str, float | int | str | None]:
    """Return rank, lr, batch size, steps and seed by the name of their column; None for a dial that the run does not have."""
    values = (rank_of(cfg), cfg["lr"], cfg["batch_size"], cfg["steps"], cfg["seed"]) if is_trained(cfg) else [None] * 5
    return dict(zip(("rank", "lr", "batch", "steps", "seed"), values, strict=True))


def dial_cell(value: float | int | str | None) -> str:
    """Return a dial's value as a cell of a table; "-" for None."""
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def show(plan: list[Planned], console: Console) -> None:
    """Print one row per run and the number of runs in each state."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("run", overflow="fold")
    rows = columns(plan)
    for column in rows[0] if plan else ():
        table.add_column(column, justify="right")
    table.add_column("state")
    table.add_column("this launch", overflow="fold")
    for planned, row in zip(plan, rows, strict=True):
        times = f" (in the grid {planned.point_count} times)" if planned.point_count > 1 else ""
        state = Text(planned.state, STYLE[planned.state])
        table.add_row(planned.run.name, *map(dial_cell, row.values()), state, action(planned) + times)
    console.print(table)
    for planned in plan:
        if planned.damage:
            console.print(Text(f"{planned.run.name}: {planned.damage}", "red"), soft_wrap=True)
    counts = {state: sum(planned.state == state for planned in plan) for state in STYLE}
    totals = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    todo = sum(planned.to_run for planned in plan)
    console.print(f"{len(plan)} run{'s' * (len(plan) != 1)}: {totals}; {todo or 'nothing'} to do.")
