"""Hydra plugins: hydra/launcher=rlvr_local and rlvr_slurm, hydra/sweeper=rlvr. They compose, plan and run a whole grid."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import DictConfig, OmegaConf


@dataclass
class LocalLauncherConf:
    """Configuration of hydra/launcher=rlvr_local."""

    _target_: str = "hydra_plugins.rlvr_launcher.LocalLauncher"
    workers: int | None = None  # runs at the same time; by default one per GPU, or one per core on a machine without GPUs


@dataclass
class SweeperConf:
    """Configuration of hydra/sweeper=rlvr: Hydra's own keys, and title and sections of a sweep of conf/sweep."""

    _target_: str = "hydra_plugins.rlvr_launcher.GridSweeper"
    max_batch_size: int | None = None
    params: dict[str, Any] | None = None
    title: str | None = None  # title of the table or figure
    sections: dict[str, Any] | None = None  # rows of the table or figure: rlvr_sweeps/config/sweeps.py
    lr: str | None = None  # auto, auto:N: grids of learning rates that grow (rlvr_sweeps/config/lr_grid.py); set by lr=auto


class LocalLauncher(Launcher):
    """Run the points of a grid on this machine, each in processes of its own."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store what Hydra passes before a launch."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose the grid and run its missing runs; return after the last one. A failed launch raises its error."""
        from rlvr_sweeps.launching import local
        from rlvr_sweeps.runs import launches

        points = compose_points(self.hydra_context, self.config, job_overrides)
        with launches.record_launch(Path(str(self.config.hydra.sweep.dir)), points):
            local.execute(points, self.workers)
        return [completed_job(overrides) for overrides in job_overrides]


@dataclass
class RlvrSlurmConf(SlurmQueueConf):
    """Configuration of hydra/launcher=rlvr_slurm: the keys of hydra-submitit-launcher's submitit_slurm, and three more."""

    _target_: str = "hydra_plugins.rlvr_launcher.RlvrSlurmLauncher"
    max_array_size: int | None = None  # limit of tasks in a job array; by default the cluster's MaxArraySize
    srun_args: list[str] = field(default_factory=list)  # arguments of srun in each job, for a container or a binding
    signal_delay_s: int | None = None  # notice before the time limit; by default from the estimates
    poll_s: float = 5.0  # with wait=true: seconds between two queries of the queue


class RlvrSlurmLauncher(SlurmLauncher):
    """Compose the grid, submit its unfinished runs to Slurm, and return without waiting unless wait=true."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store what Hydra passes before a launch; forget the ended last job of an earlier launch by the same command."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if is_in_rounds(config) and not config.plan:
            from rlvr_sweeps.launching.slurm import next_round

            next_round.forget_ended(Path(str(config.runs_dir)).absolute())

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose the grid and submit its missing runs as job arrays. A failed launch raises its error."""
        from rlvr_sweeps.launching.slurm import launch
        from rlvr_sweeps.runs import launches

        assert self.hydra_context is not None and self.config is not None
        points = compose_points(self.hydra_context, self.config, job_overrides)
        folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        with launches.record_launch(folder, points):
            launch.execute(points, self.params, folder, in_rounds=is_in_rounds(self.config))
        return [completed_job(overrides) for overrides in job_overrides]


def is_in_rounds(config: DictConfig) -> bool:
    """Return whether further rounds follow a launch, by its results: those of budget= and lr=auto."""
    return config.budget is not None or OmegaConf.select(config, "hydra.sweeper.lr") is not None


def compose_points(context: HydraContext, config: DictConfig, job_overrides: Sequence[Sequence[str]]) -> list[Any]:
    """Return the grid's points, resolved and checked."""
    from rlvr_sweeps.config import compose

    composer = compose.Composer(context.config_loader)
    hydra_overrides = OmegaConf.to_container(config.hydra.overrides.hydra)
    assert isinstance(hydra_overrides, list)
    return composer.points([[*hydra_overrides, *overrides] for overrides in job_overrides])


def completed_job(overrides: Sequence[str]) -> JobReturn:
    """Return Hydra's record of a completed point."""
    job = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    job.return_value = None
    return job


class GridSweeper(BasicSweeper):
    """Sweep a grid of the command line, or the rows of a table or figure of conf/sweep.

    Points are composed once, and a plan creates no folder.
    """

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, Any] | None = None,
        title: str | None = None,
        sections: dict[str, Any] | None = None,
        lr: str | None = None,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.sections, self.lr = sections, lr

    def sweep(self, arguments: list[str]) -> Any:
        """Pass the points to the launcher, in batches of at most `max_batch_size`; return its records of all points."""
        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        if self.config.budget is not None:
            return self.sweep_within_budget(arguments)
        if self.sections:
            from rlvr_sweeps.config import sweeps

            sections = sweeps.read_sections(OmegaConf.to_container(OmegaConf.create(self.sections)))
            rows = sweeps.points(sections, self.config.model.name, arguments)
            batches = list(self.split_overrides_to_chunks(rows, self.max_batch_size))
        else:
            parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
            overrides = parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
            batches = self.split_arguments(overrides, self.max_batch_size)
        return self.launch_growing(batches) if self.lr else self.launch(batches)

    def launch(self, batches: Sequence[Sequence[Sequence[str]]]) -> list[Any]:
        """Pass batches of points to the launcher; return its records of all points."""
        assert self.launcher is not None
        returns = []
        for index, batch in enumerate(batches):
            returns.append(self.launcher.launch(batch, initial_job_idx=index * len(batches[0])))
            for job in returns[-1]:
                _ = job.return_value  # raises the exception of a failed job
        return returns

    def launch_growing(self, batches: Sequence[Sequence[Sequence[str]]]) -> list[Any]:
        """Launch every row at the rates of its grid, again while results make a grid grow; print each row's curve."""
        from rlvr_sweeps.config import lr_grid
        from rlvr_sweeps.launching import lr_rounds

        assert self.config is not None and self.hydra_context is not None and self.lr is not None
        points = [point for batch in batches for point in batch]
        rounds = lr_rounds.Rounds(self.hydra_context.config_loader, self.config, points, lr_grid.most_rates(self.lr))
        returns: list[Any] = []
        while grid := rounds.next_points():
            returns += self.launch(list(self.split_overrides_to_chunks(grid, self.max_batch_size)))
        rounds.show()
        return returns

    def sweep_within_budget(self, arguments: list[str]) -> Any:
        """Launch round after round, each with the seeds that can still decide a claim; return the records of all points."""
        from rlvr_sweeps.config import compose
        from rlvr_sweeps.errors import Refused
        from rlvr_sweeps.launching import adaptive

        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        if not self.sections or self.config.sweep is None:
            raise Refused("budget= needs a sweep that claims are about: python launch.py sweep=methods budget=40.")
        if self.lr:
            raise Refused("budget= and lr=auto cannot be combined: each decides which runs come next. Leave one of them out.")
        composer = compose.Composer(self.hydra_context.config_loader)
        budget = adaptive.read_budget(str(self.config.budget))
        returns: list[Any] = []
        for points in adaptive.rounds(
            composer, str(self.config.sweep), str(self.config.model.name), arguments, budget,
            int(self.config.most_seeds), bool(self.config.plan),
        ):  # fmt: skip
            returns.append(self.launcher.launch(points, initial_job_idx=sum(map(len, returns))))
        return returns


store = ConfigStore.instance()
store.store(group="hydra/launcher", name="rlvr_local", node=LocalLauncherConf, provider="rlvr_sweeps")
store.store(group="hydra/launcher", name="rlvr_slurm", node=RlvrSlurmConf, provider="rlvr_sweeps")
store.store(group="hydra/sweeper", name="rlvr", node=SweeperConf, provider="rlvr_sweeps")
