"""Early stopping during training: asks the rules after each step, and ends the run where one says so, on all ranks at once."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.files import read_json, read_rows, write_json
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training.trainer import RlvrTrainer


class EarlyStopping(TrainerCallback):
    """Stops a run at the end of a step, with a checkpoint; stopped_early.json says why, and the run counts as done.

    Comes after MetricsWriter: rules read the row of the step. A decision that was written down holds after a resume.
    """

    def __init__(self, run: Run, trainer: RlvrTrainer) -> None:
        self.run, self.trainer, self.asked = run, trainer, trainer.cfg["early_stopping"]
        self.competitor: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.asked["first_rung"] is not None:
            from rlvr_sweeps.training.successive_halving import Competitor

            self.competitor = Competitor(self.run, self.trainer.cfg)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        """Take a gradient that is no number out of the step: what is evaluated is the last model that has finite weights."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if self.asked["collapse"] and not all(bool(gradient.isfinite().all()) for gradient in gradients):
            for gradient in gradients:
                gradient.zero_()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "reward" not in logs:  # the closing summary
            return
        accelerator = self.trainer.accelerator
        why = self.judge(state) if state.is_world_process_zero else None
        if int(accelerator.gather(torch.tensor([int(why is not None)], device=accelerator.device)).max()):
            if not all(bool(parameter.isfinite().all()) for parameter in self.trainer.model.parameters()):
                raise FloatingPointError(f"weights are no numbers at step {state.global_step}: there is nothing to evaluate")
            control.should_save = control.should_training_stop = True

    def judge(self, state: Any) -> str | None:
        """Why to stop after this step, written down; None: go on."""
        step, window = state.global_step, self.asked["window"]
        known = read_json(self.run.stopped_early_path)
        if known and known["step"] == step:
            return str(known["why"])
        rows = read_rows(self.run.metrics_path)
        is_early = step < state.max_steps
        why = self.collapse(rows) if self.asked["collapse"] and (is_early or rows[-1]["loss"] is None) else None
        if self.competitor:
            reward = statistics.fmean(row["reward_mean"] for row in rows[-window:])
            if why is None and is_early and self.competitor.is_rung(step) and self.competitor.falls_behind(step, reward):
                best = f"the best 1/{self.asked['reduction']} of its study"
                why = f"its reward at step {step}, {reward:.3f}, was not among {best}"
            if why or not is_early:
                self.competitor.leave(reward, pruned=why is not None)
        if why:
            write_json(self.run.stopped_early_path, {"step": step, "why": why})
        return why

    def collapse(self, rows: list[dict[str, Any]]) -> str | None:
        return why_collapsed(rows, self.asked["window"], self.asked["standard_errors"], self.asked["truncated_share"])


def last_step(run: Run, cfg: Resolved) -> int:
    """The step at which this training ends, as far as is known."""
    known = read_json(run.stopped_early_path)
    return int(known["step"]) if known else int(cfg["steps"])


def why_collapsed(rows: Sequence[Mapping[str, Any]], window: int, standard_errors: float, truncated_share: float) -> str | None:
    """Why to stop after the last of `rows`, which hold every step from the first on; None: go on.

    - its loss is no finite number: at once;
    - of the completions of the last `window` steps more than `truncated_share` were cut off;
    - the mean reward of each of the last two windows is more than `standard_errors` below that of the first window. The error
      is that of a difference of two means, √(s₁²/w + s²/w), with the steps' own variances.

    The last two are looked at where a window ends, at steps w, 2w, …, so that windows do not overlap. Two windows in a row,
    because each look is a test: see tests/test_early_stopping.py for how often a run that does not change is stopped.
    """
    if rows[-1]["loss"] is None:
        return "the loss is not a finite number"
    if len(rows) % window:
        return None
    cut_off = statistics.fmean(row["truncated_share"] for row in rows[-window:])
    if cut_off > truncated_share:
        return f"{cut_off:.0%} of the completions of the last {window} steps were cut off"
    if len(rows) < 3 * window:
        return None
    first, before, last = (
        [float(row["reward_mean"]) for row in part] for part in (rows[:window], rows[-2 * window : -window], rows[-window:])
    )
    if all(falls(first, later, standard_errors) for later in (before, last)):
        return (
            f"the reward of the last {2 * window} steps, {statistics.fmean(before + last):.3f}, is more than "
            f"{standard_errors:g} standard errors below that of the first {window}, {statistics.fmean(first):.3f}"
        )
    return None


def falls(first: Sequence[float], later: Sequence[float], standard_errors: float) -> bool:
    (start, start_error2), (now, now_error2) = mean_and_squared_error(first), mean_and_squared_error(later)
    return now < start - standard_errors * math.sqrt(start_error2 + now_error2)


def mean_and_squared_error(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)
