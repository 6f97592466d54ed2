"""Launch a sweep round by round within a budget: each round, the rows get a seed that can still decide a claim.

There is no controller: the state is in the run directories and the record of the looks, and the same command goes on.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlvr_sweeps.config.compose import Composer
from rlvr_sweeps.config.sweeps import key_of
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.reporting.claims.looks import Looks, Next, summary
from rlvr_sweeps.reporting.differences.sequential import FIRST_LOOK
from rlvr_sweeps.runs.directory import Run

MOST_POSSIBLE = 30  # seeds of a row; looks that are closer together are no longer computed exactly
OF_THE_ROUNDS = ("budget", "most_seeds", "seed")  # settings that are not those of a run


@dataclass(frozen=True)
class Budget:
    """What a sweep may take in all, runs that exist included: runs, or hours of runs (times GPUs, where they have some)."""

    limit: float
    in_hours: bool

    def affordable(self, looks: Looks) -> int:
        """Return the number of further runs that fit; for hours, by the mean of the runs that exist."""
        if not self.in_hours:
            return int(self.limit) - looks.runs
        hours = hours_of(looks)
        return int((self.limit - hours) / (hours / looks.runs)) if looks.runs and hours else sys.maxsize

    def __str__(self) -> str:
        return f"{self.limit:g} hours" if self.in_hours else f"{self.limit:g} runs"


def read_budget(text: str) -> Budget:
    """Return the budget of `40` (runs) or `12h` (hours); raise Refused for other texts."""
    number = text.removesuffix("h")
    try:
        limit = float(number)
    except ValueError:
        limit = 0.0
    in_hours = text.endswith("h")
    if limit <= 0 or (not in_hours and limit != int(limit)):
        raise Refused(f"budget={text} is not possible. Allowed: a number of runs (40), or of GPU-hours (12h).")
    return Budget(limit, in_hours)


def hours_of(looks: Looks) -> float:
    """Return the hours of the evaluated runs: the seconds of training times its processes."""
    hours = 0.0
    for key, results in looks.results.items():
        processes = looks.rows[key].cfg["distributed"]["processes"]
        hours += sum(float(result.summary.get("train_seconds") or 0.0) for result in results) * processes / 3600
    return hours


def rounds(
    composer: Composer, sweep: str, model: str, arguments: Sequence[str], budget: Budget, most: int, plan: bool = False
) -> Iterator[list[list[str]]]:
    """Yield the overrides of each round's runs; the caller launches them before it asks for the next round.

    Ends, with a table of the claims and the reason, once they are decided, no affordable seed can decide one, or a round's runs
    have not ended (on Slurm without wait=true), and with `plan` after one round.
    """
    refuse_lists(arguments)
    if not FIRST_LOOK <= most <= MOST_POSSIBLE:
        raise Refused(f"most_seeds={most} is not possible. Allowed: {FIRST_LOOK} to {MOST_POSSIBLE}.")
    base = [text for text in arguments if key_of(text) not in OF_THE_ROUNDS]
    runs_dir = Path(str(composer.compose([text for text in base if not text.startswith("hydra")]).runs_dir)).absolute()
    looks = Looks(composer, sweep, model, base, runs_dir, most)
    console = Console(width=None if sys.stdout.isatty() else 120)
    for note in looks.notes:
        console.print(note, style="dim", highlight=False, soft_wrap=True)
    launched: list[Next] = []
    while True:
        chances = looks.look()
        if waiting := [each for each in launched if not is_evaluated(looks, each)]:
            console.print(
                f"{len(waiting)} of {len(launched)} runs of this round are not evaluated. When they are, the round's last job "
                "on Slurm, or the same command, looks at the claims and launches the next round.",
                highlight=False,
                soft_wrap=True,
            )
            return
        show(looks, console)
        candidates = looks.next_seeds(chances)
        affordable = budget.affordable(looks)
        if not looks.runs and affordable < len(candidates):
            raise Refused(
                f"budget={budget.limit:g} is too small: the first look needs {FIRST_LOOK} seeds of each row, that is "
                f"{len(candidates)} runs. Set budget={len(candidates)} or more."
            )
        launched = candidates[: max(0, affordable)]
        if not launched:
            console.print(reason_to_stop(chances, candidates, budget), highlight=False, soft_wrap=True)
            return
        console.print(f"next: {', '.join(f'{each.row.label} seed {each.seed}' for each in launched)}", soft_wrap=True)
        yield [[*each.row.overrides, f"seed={each.seed}"] for each in launched]
        if plan:
            return


def reason_to_stop(chances: dict[int, float], candidates: Sequence[Next], budget: Budget) -> str:
    """Return why no round follows."""
    if not chances:
        return "All claims are decided, or have the most seeds (most_seeds=)."
    if not candidates:
        return "No further seed is likely to decide a claim that is open. More benchmark problems or samples may."
    return f"The budget of {budget} is spent; a further round would have {len(candidates)}. To go on: a larger budget=."


def is_evaluated(looks: Looks, launched: Next) -> bool:
    """Return whether a launched run is among the results."""
    cfg = looks.config(launched.row, launched.seed)
    run = Run.of(cfg)
    return run.config_path.exists() and run.is_done("evaluate", cfg)


def refuse_lists(arguments: Sequence[str]) -> None:
    """Raise Refused for a seed, or a list of values, together with a budget."""
    for text in arguments:
        key, _, value = text.partition("=")
        if key == "seed":
            raise Refused(f"{text} cannot be combined with budget=, which chooses the seeds itself. Leave seed= out.")
        if "," in value and not value.startswith(("[", "{", "'", '"')):
            raise Refused(f"{text} cannot be combined with budget=, since claims are about one value of {key}.")


def show(looks: Looks, console: Console) -> None:
    """Print the claims and their latest looks."""
    table = Table(title=f"Claims after {looks.runs} runs", title_justify="left", header_style="dim", box=None, pad_edge=False)
    for column in ("claim", "contrast"):
        table.add_column(column)
    for column in ("seeds", "difference, points", "interval", "verdict"):
        table.add_column(column, justify="right")
    table.add_column("claim's verdict")
    for row in summary(looks):
        known = row["difference"] is not None
        interval = f"{row['low']:+.1f} to {row['high']:+.1f}" if known else "-"
        difference = f"{row['difference']:+.1f}" if known else "-"
        table.add_row(
            row["claim"], row["contrast"], str(row["seeds"]), difference, interval, row["contrast_verdict"], row["verdict"]
        )
    console.print(table)
