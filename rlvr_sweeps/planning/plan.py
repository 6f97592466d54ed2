"""What a launch will do, decided before anything runs: one line per distinct run."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlvr_sweeps.config.compose import Point
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained, rank_of
from rlvr_sweeps.runs.directory import Live, Run, State

STYLE = {
    "new": "cyan", "running": "yellow", "done": "green", "failed": "red", "lost": "magenta", "stale": "cyan",
    "queued": "blue",
}  # fmt: skip
TO_RUN: tuple[State, ...] = ("new", "lost", "stale")


@dataclass(frozen=True)
class Planned:
    """A run, where it stands, and whether this launch will work on it."""

    run: Run
    cfg: Resolved
    state: State
    to_run: bool
    asked: int  # how many points of the grid mean this run


def make_plan(points: Iterable[Point], retry: bool, live: Live | None = None) -> list[Planned]:
    """One entry per distinct run, in the grid's order; failed runs only where `retry` asks for them."""
    asked: dict[str, list[Point]] = {}
    for point in points:
        asked.setdefault(Run.of(point.cfg).name, []).append(point)
    plan = []
    for same in asked.values():
        cfg = same[0].cfg
        run = Run.of(cfg)
        state = run.state(cfg, live)
        plan.append(Planned(run, cfg, state, state in TO_RUN or (retry and state == "failed"), len(same)))
    return plan


def action(planned: Planned) -> str:
    """What this launch does with a run, in words."""
    if planned.state == "failed":
        return "run again" if planned.to_run else "left alone (retry=true runs it again)"
    analysed_alone = planned.state == "stale" and planned.run.is_done("evaluate", planned.cfg)
    return {
        "new": "train and evaluate" if is_trained(planned.cfg) else "evaluate",
        "lost": "go on from its checkpoint",
        "stale": "analyse" if analysed_alone else "evaluate as now asked",
        "running": "left alone, it is at work",
        "queued": "left alone, it waits in the queue",
        "done": "left alone",
    }[planned.state]


def dial_cells(cfg: Resolved) -> list[str]:
    """The cells of a run's row that say which point it is."""
    trained = is_trained(cfg)
    cells = [rank_of(cfg), f"{cfg['lr']:g}", cfg["batch_size"], cfg["steps"], cfg["seed"]] if trained else [None] * 5
    return ["-" if cell is None else str(cell) for cell in cells]


def show(plan: list[Planned], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("run", overflow="fold")
    for column in ("rank", "lr", "batch", "steps", "seed"):
        table.add_column(column, justify="right")
    table.add_column("state")
    table.add_column("this launch", overflow="fold")
    for planned in plan:
        times = f" (asked {planned.asked} times)" if planned.asked > 1 else ""
        state = Text(planned.state, STYLE[planned.state])
        table.add_row(planned.run.name, *dial_cells(planned.cfg), state, action(planned) + times)
    console.print(table)
    counts = {state: sum(planned.state == state for planned in plan) for state in STYLE}
    words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    todo = sum(planned.to_run for planned in plan)
    console.print(f"{len(plan)} run{'s' * (len(plan) != 1)}: {words}; {todo or 'nothing'} to do.")
