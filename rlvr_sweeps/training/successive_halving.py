"""Asynchronous successive halving without a controller: the runs of a study meet at a journal file beside their directories.

Optuna keeps the table and the rule (SuccessiveHalvingPruner, after Li et al. 2020, arXiv 1810.05934): at steps r, r·η, r·η², …
a run states its reward and stops unless it is among the best 1/η of those that came so far. The first to come always goes on.
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
    """One run's place in its study; the same trial again after a resume."""

    def __init__(self, run: Run, cfg: Resolved) -> None:
        asked = cfg["early_stopping"]
        self.first, self.reduction = int(asked["first_rung"]), int(asked["reduction"])
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = journal(run.path.parent, asked["study"])
        path.parent.mkdir(exist_ok=True)
        self.study = optuna.create_study(
            study_name=f"{asked['study']}, {cfg['model']['name']} on {cfg['data']['name']}",  # other rewards do not compare
            storage=JournalStorage(JournalFileBackend(str(path))), direction="maximize", load_if_exists=True,
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=self.first, reduction_factor=self.reduction),
        )  # fmt: skip
        mine = [trial for trial in self.study.get_trials(deepcopy=False) if trial.user_attrs.get("run") == run.name]
        if mine:
            self.trial = patches.stored_trial(self.study, mine[0])
        else:
            self.trial = self.study.ask()
            self.trial.set_user_attr("run", run.name)

    @property
    def is_over(self) -> bool:
        return self.kept().state.is_finished()

    def kept(self) -> FrozenTrial:
        """The trial as the journal has it."""
        return self.study.get_trials(deepcopy=False)[self.trial.number]

    def is_rung(self, step: int) -> bool:
        rung = self.first
        while rung < step:
            rung *= self.reduction
        return rung == step

    def falls_behind(self, step: int, reward: float) -> bool:
        """State the reward at a rung; whether the run is to stop there. A verdict stands, also for a run that begins anew."""
        kept, name = self.kept(), f"stops at {step}"
        if kept.state == TrialState.PRUNED or name in kept.user_attrs:
            return bool(kept.state == TrialState.PRUNED or kept.user_attrs[name])
        self.trial.report(reward, step)
        verdict = self.trial.should_prune()
        self.trial.set_user_attr(name, verdict)
        return verdict

    def leave(self, reward: float, pruned: bool) -> None:
        """Say that the run has ended, by the rule or at its last step."""
        if not self.is_over:
            self.study.tell(self.trial, None if pruned else reward, state=TrialState.PRUNED if pruned else TrialState.COMPLETE)


def journal(runs_dir: Path, study: str) -> Path:
    return runs_dir / ".rungs" / f"{study}.journal"
