"""Early stopping: after each step the rules are evaluated, and a run that has collapsed or falls behind its study ends.

The rules are `why_collapsed` (this file) and successive halving (successive_halving.py). All ranks stop at the same step.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.files import read_object, read_rows, write_json
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training.trainer import RlvrTrainer


class EarlyStopping(TrainerCallback):
    """A callback that ends a run after a step, with a checkpoint; stopped_early.json has the reason, and the run is done.

    It must be added after MetricsWriter, since the rules read the row of the step. A written decision holds after a resume.
    """

    def __init__(self, run: Run, trainer: RlvrTrainer) -> None:
        self.run, self.trainer, self.settings = run, trainer, trainer.cfg["early_stopping"]
        self.competitor: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.settings["first_rung"] is not None:
            from rlvr_sweeps.training.successive_halving import Competitor

            self.competitor = Competitor(self.run, self.trainer.cfg)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        """Set gradients to zero where one is not finite, so that the evaluated model has finite weights."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if self.settings["collapse"] and not all(bool(gradient.isfinite().all()) for gradient in gradients):
            for gradient in gradients:
                gradient.zero_()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "reward" not in logs:  # TRL's summary after the last step
            return
        accelerator = self.trainer.accelerator
        why = self.reason_to_stop(state) if state.is_world_process_zero else None
        if int(accelerator.gather(torch.tensor([int(why is not None)], device=accelerator.device)).max()):
            if not all(bool(parameter.isfinite().all()) for parameter in self.trainer.model.parameters()):
                raise FloatingPointError(
                    f"Weights are not finite at step {state.global_step}, so there is no model to evaluate. Lower the learning "
                    "rate (lr) and launch again."
                )
            control.should_save = control.should_training_stop = True

    def reason_to_stop(self, state: Any) -> str | None:
        """Return the reason to stop after this step, and write it to stopped_early.json; None: continue."""
        step, window = state.global_step, self.settings["window"]
        stored = read_object(self.run.stopped_early_path, "step", "why")
        if stored and stored["step"] == step:
            return str(stored["why"])
        rows = read_rows(self.run.metrics_path, "step", "reward_mean", "loss", "truncated_share")
        is_early = step < state.max_steps
        why = self.collapse(rows) if self.settings["collapse"] and (is_early or rows[-1]["loss"] is None) else None
        if self.competitor:
            reward = statistics.fmean(row["reward_mean"] for row in rows[-window:])
            if why is None and is_early and self.competitor.is_rung(step) and self.competitor.falls_behind(step, reward):
                best = f"the best 1/{self.settings['reduction']} of its study"
                why = f"its reward at step {step}, {reward:.3f}, was not among {best}"
            if why or not is_early:
                self.competitor.finish(reward, pruned=why is not None)
        if why:
            write_json(self.run.stopped_early_path, {"step": step, "why": why})
        return why

    def collapse(self, rows: list[dict[str, Any]]) -> str | None:
        """Return `why_collapsed` with the configured thresholds."""
        settings = self.settings
        return why_collapsed(rows, settings["window"], settings["standard_errors"], settings["truncated_share"])


def last_step(run: Run, cfg: Resolved) -> int:
    """Return the step at which this training ends: the configured one, or an earlier one that was decided."""
    stored = read_object(run.stopped_early_path, "step", "why")
    return int(stored["step"]) if stored else int(cfg["steps"])


def why_collapsed(rows: Sequence[Mapping[str, Any]], window: int, standard_errors: float, truncated_share: float) -> str | None:
    """Return the reason to stop after the last of `rows`, or None; the rows hold every step from the first on.

    - The loss of the last step is not finite.
    - More than `truncated_share` of the completions of the last `window` steps were cut off.
    - No group of the last `window` steps had both right and wrong completions, so that nothing was learned.
    - The mean reward of each of the last two windows is more than `standard_errors` below that of the first window. The
      standard error is that of a difference of two means, √(s₁²/w + s²/w), with the variances of the steps' rewards.

    All rules but the first are evaluated at the end of a window, at steps w, 2w, …, so that windows do not overlap. Two
    consecutive windows must be lower, since each evaluation is a test; tests/training/test_early_stopping.py has the rate of
    false stops.
    """
    if rows[-1]["loss"] is None:
        return "the loss is not a finite number"
    if len(rows) % window:
        return None
    cut_off = statistics.fmean(row["truncated_share"] for row in rows[-window:])
    if cut_off > truncated_share:
        return f"{cut_off:.0%} of the completions of the last {window} steps were cut off"
    if all(row.get("trained_zero_std_share") == 1 for row in rows[-window:]):
        return f"in the last {window} steps, every group of completions was all right or all wrong"
    if len(rows) < 3 * window:
        return None
    first, before, last = (
        [float(row["reward_mean"]) for row in rows_of_window]
        for rows_of_window in (rows[:window], rows[-2 * window : -window], rows[-window:])
    )
    if all(is_lower(first, later, standard_errors) for later in (before, last)):
        return (
            f"the reward of the last {2 * window} steps, {statistics.fmean(before + last):.3f}, is more than "
            f"{standard_errors:g} standard errors below that of the first {window}, {statistics.fmean(first):.3f}"
        )
    return None


def is_lower(first: Sequence[float], later: Sequence[float], standard_errors: float) -> bool:
    """Return whether the mean of `later` is more than `standard_errors` below that of `first`."""
    (first_mean, first_error2), (later_mean, later_error2) = mean_and_squared_error(first), mean_and_squared_error(later)
    return later_mean < first_mean - standard_errors * math.sqrt(first_error2 + later_error2)


def mean_and_squared_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its squared standard error."""

    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)
