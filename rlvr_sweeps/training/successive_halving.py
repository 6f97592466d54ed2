"""Asynchronous successive halving without a controller: the runs of a study share a journal file beside their directories.

Optuna has the table and the rule (SuccessiveHalvingPruner, after Li et al. 2020, arXiv 1810.05934): at the rungs, the steps r,
r·η, r·η², …, a run reports its reward and stops unless it is among the best 1/η of those that have reported. The first run at a
rung always continues.



"""

from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from rlvr_sweeps import patches
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.runs.directory import Run


class Competitor:
    """One run in its study: an Optuna trial, which a resumed run continues."""

    def __init__(self, run: Run, cfg: Resolved) -> None:
        settings = cfg["early_stopping"]
        self.first, self.reduction = int(settings["first_rung"]), int(settings["reduction"])
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = journal_path(run.path.parent, settings["study"])
        path.parent.mkdir(exist_ok=True)
        self.study = optuna.create_study(
            # Rewards of other models or data do not compare, so they are other studies.
            study_name=f"{settings['study']}, {cfg['model']['name']} on {cfg['data']['name']}",
            storage=JournalStorage(JournalFileBackend(str(path))), direction="maximize", load_if_exists=True,
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=self.first, reduction_factor=self.reduction),
        )  # fmt: skip
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if trial.user_attrs.get("run") == run.name]
        if trials:
            self.trial = patches.stored_trial(self.study, trials[0])
        else:
            self.trial = self.study.ask()
            self.trial.set_user_attr("run", run.name)

    @property
    def is_over(self) -> bool:
        """Whether the journal has the end of this run."""
        return self.stored().state.is_finished()

    def stored(self) -> FrozenTrial:
        """Return the trial as the journal has it."""
        return self.study.get_trials(deepcopy=False)[self.trial.number]

    def is_rung(self, step: int) -> bool:
        """Return whether runs report their reward at this step."""
        rung = self.first
        while rung < step:
            rung *= self.reduction
        return rung == step

    def falls_behind(self, step: int, reward: float) -> bool:
        """Report the reward at a rung and return whether the run must stop there.

        A decision is stored, and holds for a run that is resumed or started again.
        """
        stored, name = self.stored(), f"stops at {step}"
        if stored.state == TrialState.PRUNED or name in stored.user_attrs:
            return bool(stored.state == TrialState.PRUNED or stored.user_attrs[name])
        self.trial.report(reward, step)
        verdict = self.trial.should_prune()
        self.trial.set_user_attr(name, verdict)
        return verdict

    def finish(self, reward: float, pruned: bool) -> None:
        """Record that the run has ended: stopped early (`pruned`), or at its last step with this reward."""
        if not self.is_over:
            self.study.tell(self.trial, None if pruned else reward, state=TrialState.PRUNED if pruned else TrialState.COMPLETE)


def journal_path(runs_dir: Path, study: str) -> Path:
    """Return the path of a study's journal file."""

    return runs_dir / ".rungs" / f"{study}.journal"
