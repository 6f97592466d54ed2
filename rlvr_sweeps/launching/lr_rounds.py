"""The rounds of an `lr=auto` launch: every row at the rates of its grid, then those that its results add at an edge.

A launch that waits for its runs goes on by itself until no grid grows. On Slurm without wait=true it submits one round, whose
last job runs the same command when the runs have ended, which submits the next. Nothing runs in between.
"""

import sys
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from rlvr_sweeps.config.compose import Composer
from rlvr_sweeps.reporting.lr_search import RateGrid, grids_of_points, overrides_of


class Rounds:
    """The grids of a launch's rows, and which points to launch next."""

    def __init__(self, loader: ConfigLoader, config: DictConfig, points: Sequence[Sequence[str]], bound: int) -> None:
        """`points`: the overrides of the launch's points without lr=auto; `bound`: the most rates of a row."""
        hydra_overrides = OmegaConf.to_container(config.hydra.overrides.hydra)
        assert isinstance(hydra_overrides, list)
        self.composer, self.bound = Composer(loader), bound
        self.points = [[*hydra_overrides, *point] for point in points]
        self.own_overrides = len(hydra_overrides)
        self.only_plan = bool(config.plan)
        self.launched: list[list[str]] = []
        self.grids: list[RateGrid] = []

    def next_points(self) -> list[list[str]]:
        """Return the points of all grids where one has grown since the last call, else an empty list."""
        self.grids = grids_of_points(self.composer, self.points, self.bound)
        grid = [point[self.own_overrides :] for point in overrides_of(self.grids)]
        if grid == self.launched or (self.launched and self.only_plan):
            return []
        self.launched = grid
        return grid

    def show(self) -> None:
        """Print each row's held-out accuracy by learning rate, and whether the best one is inside the grid."""
        console = Console(width=None if sys.stdout.isatty() else 120)
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("lr=auto", "held-out accuracy in percent by lr (*: the best)", "the best lr is"):
            table.add_column(column)
        for grid in self.grids:
            table.add_row(grid.choice.title, grid.curve, grid.state)
        console.print(table)
        if not self.only_plan and any(grid.state == "runs are missing" for grid in self.grids):
            console.print(
                "Runs are missing. When they are evaluated, the round's last job on Slurm, or the same command, adds rates "
                "where the best one is at an edge."
            )
