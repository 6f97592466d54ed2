"""Callbacks of the trainer: rows of metrics.jsonl, stopping on request, complete checkpoints, the worst case before step 1."""

import contextlib
import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from rlvr_sweeps import patches
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import analysis_of, largest_pass, sampling_weights, training_of
from rlvr_sweeps.errors import Damaged, StoppedInStep, Superseded
from rlvr_sweeps.files import append_rows, read_object, read_rows, write_json, write_text
from rlvr_sweeps.runs.checkpoints import mark_complete, superseded
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training.dynamic_sampling import Pool
from rlvr_sweeps.training.methods.merging import policy_weights
from rlvr_sweeps.training.methods.reach import changed_tensors, frozen_digests, reach
from rlvr_sweeps.training.methods.spectra import spectra
from rlvr_sweeps.training.methods.svd import cached_smaller_side
from rlvr_sweeps.training.models import PublishedWeights
from rlvr_sweeps.training.random_state import RandomState, kept_random_state
from rlvr_sweeps.training.trainer import RlvrTrainer

ROW_OF_LOG = {
    "entropy": "entropy",
    "clip_share": "clip_ratio/region_mean",
    "grad_norm": "grad_norm",
    "loss": "loss",
    "lr": "learning_rate",
    "tokens_seen": "num_tokens",
}


class MetricsWriter(TrainerCallback):
    """Append a row to metrics.jsonl after each optimizer step; on a resume, drop rows later than the checkpoint."""

    def __init__(self, run: Run, trainer: RlvrTrainer) -> None:
        self.run, self.trainer = run, trainer
        self.step_start = self.step_s = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        rows = [row for row in read_rows(self.run.metrics_path, "step") if row["step"] <= state.global_step]
        write_text(self.run.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_start = time.perf_counter()
        self.trainer.seconds.clear()
        self.trainer.columns = {}
        self.trainer.truncated_share = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_s = time.perf_counter() - self.step_start

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "reward" not in logs or not state.is_world_process_zero:  # TRL's summary after the last step has no reward
            return
        seconds = self.trainer.seconds
        row = {
            "step": state.global_step,
            **self.trainer.columns,
            "truncated_share": self.trainer.truncated_share,
            **{name: finite(logs.get(key)) for name, key in ROW_OF_LOG.items()},
        }
        row |= {
            f"{phase}_s": seconds[phase] for phase in ("rollout", "sync", "reward", "logprobs")
        }  # rollout_s includes sync_s
        row |= {"update_s": self.step_s - seconds["sampling"]}
        row |= {"rest_s": self.step_s - sum(row[phase] for phase in ("rollout_s", "reward_s", "logprobs_s", "update_s"))}
        append_rows(self.run.metrics_path, [row])
        if not math.isfinite(float(logs.get("loss", 0.0))) and not self.trainer.cfg["early_stopping"]["collapse"]:
            raise FloatingPointError(
                f"The loss is {logs['loss']} at step {state.global_step}; see {self.run.metrics_path}. Lower the learning rate "
                "(lr), or set early_stopping=collapse to evaluate the model before this step."
            )


class RolloutWriter(TrainerCallback):
    """Append some completions of each step to rollouts.jsonl; on a resume, drop those later than the checkpoint."""

    def __init__(self, run: Run, trainer: RlvrTrainer) -> None:
        self.run, self.trainer = run, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.run.rollouts_path.exists():
            rows = [row for row in read_rows(self.run.rollouts_path, "step") if row["step"] <= state.global_step]
            write_text(self.run.rollouts_path, "".join(json.dumps(row) + "\n" for row in rows))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.trainer.readable:
            append_rows(self.run.rollouts_path, [{"step": state.global_step, **row} for row in self.trainer.readable])
            self.trainer.readable = []


NOTHING, SAVE, STOP_AFTER_STEP, STOP_NOW, END = range(5)  # what rank 0 reads, and all ranks do; the higher one decides
MARGIN_S = 5.0  # between the expected end of a step with its checkpoint and the deadline


class StopOnRequest(TrainerCallback):
    """End training with a checkpoint once the run's stop file exists; add a checkpoint every `training.save_minutes`.

    The stop file is read after each step, each sampling round (with `rollout.continuous`, every 1/128 of the token limit) and
    each forward pass, and all ranks act at the same one. With a deadline in it, training ends at once where the step would not
    end in time: the state after the last whole step is saved and the step is repeated after the resume. Otherwise training
    ends after the step. Once a newer attempt at this run has begun, training ends at once and writes nothing more.
    """

    def __init__(self, run: Run, trainer: RlvrTrainer) -> None:
        self.run, self.trainer, self.stopped = run, trainer, False
        self.attempt = os.environ.get("RLVR_ATTEMPT")  # set in a Slurm job
        self.step_start = self.saved_at = time.monotonic()
        self.samples = True  # whether this step begins by sampling; with rollout.lag=1 every second one does not
        self.durations: dict[bool, float] = {}  # of the last step that sampled, and of the last that did not
        self.step_s: float | None = None  # duration of the last step
        self.between_s = 0.0  # the longest time between two steps, which is that of a checkpoint
        self.step_end: StepEnd | None = None  # of the last step, if it is not saved
        trainer.check_stop = self.check_within_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        if self.step_s is not None:
            self.between_s = max(self.between_s, now - self.step_start - self.step_s)
        self.step_start, self.samples = now, not self.trainer.pending

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_s = self.durations[self.samples] = time.monotonic() - self.step_start
        self.step_end = StepEnd.of(self.trainer)
        code = self.agreed(self.read_request(within_step=False))
        if code in (STOP_AFTER_STEP, STOP_NOW) and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = self.stopped = True
        elif code == SAVE:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved_at, self.step_end = time.monotonic(), None

    def check_within_step(self) -> None:
        """Raise StoppedInStep where training must end before this step does."""
        if self.agreed(self.read_request(within_step=True)) == STOP_NOW:
            self.stopped = True
            raise StoppedInStep

    def agreed(self, own: int) -> int:
        """Return rank 0's code on all ranks; raise Superseded for END."""
        accelerator = self.trainer.accelerator
        code = own if accelerator.is_main_process else NOTHING
        if accelerator.num_processes > 1:
            code = int(accelerator.gather(torch.tensor([code], device=accelerator.device)).max())
        if code == END:
            raise Superseded(f"Attempt {self.attempt} at this run ends, since a newer attempt has begun.")
        return code

    def read_request(self, within_step: bool) -> int:
        """Return what the files of the run and the clock ask for."""
        if self.attempt and str((read_object(self.run.attempt_path) or {}).get("attempt", self.attempt)) != self.attempt:
            return END
        if self.run.stop_path.exists():
            return STOP_NOW if within_step and not self.ends_in_time() else STOP_AFTER_STEP
        minutes = self.trainer.cfg["training"].get("save_minutes")
        is_due = minutes is not None and time.monotonic() - self.saved_at > 60 * minutes
        return SAVE if is_due and not within_step else NOTHING

    def ends_in_time(self) -> bool:
        """Return whether this step, as long as the last one of its kind, and its checkpoint end before the deadline."""
        deadline = None
        with contextlib.suppress(Damaged):  # a stop file that a person made may be empty
            deadline = (read_object(self.run.stop_path) or {}).get("deadline")
        if deadline is None:
            return True
        step_s = self.durations.get(self.samples)
        if step_s is None:
            return False
        remaining_s = max(step_s - (time.monotonic() - self.step_start), step_s / 10)
        return time.time() + remaining_s + self.between_s + MARGIN_S < float(deadline)

    def save_last_step(self) -> None:
        """After StoppedInStep, on all ranks: save the state after the last whole step, unless it is saved or there is none."""
        if self.step_end is not None:
            self.step_end.restore(self.trainer)
            patches.save_checkpoint(self.trainer)

    def record_saved(self) -> None:
        """Record for the supervisor that this attempt has saved a checkpoint."""
        if self.attempt:
            write_json(self.run.saved_path, int(self.attempt))


@dataclass(frozen=True)
class StepEnd:
    """What changes within a step before the optimizer does: random numbers, prompt position, pending groups, tokens."""

    generators: RandomState
    position: int
    pending: tuple[Pool, ...]
    tokens: int

    @classmethod
    def of(cls, trainer: RlvrTrainer) -> "StepEnd":
        """Return the present values."""
        position, tokens = trainer.prompts.position, int(trainer.state.num_input_tokens_seen)
        return cls(RandomState.now(), position, tuple(trainer.pending), tokens)

    def restore(self, trainer: RlvrTrainer) -> None:
        """Set these values again."""
        self.generators.restore()
        trainer.prompts.position, trainer.pending = self.position, list(self.pending)
        trainer.state.num_input_tokens_seen = self.tokens


def finite(value: Any) -> float | None:
    """Return a value as a float, or None where it is missing or not finite, since JSON has no NaN."""
    return float(value) if value is not None and math.isfinite(float(value)) else None


def add_row(path: Path, step: int, facts: dict[str, Any]) -> None:
    """Add the row of a checkpoint to a file; rows of this step and later, which a resume repeats, are replaced."""
    rows = [row for row in read_rows(path, "step") if row["step"] < step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in [*rows, {"step": step, **facts}]))


LEAST_KEPT = 0.9  # share of the update below which the sampler's rounding is warned of


class CheckpointKeeper(TrainerCallback):
    """Add the trainer's own state to each checkpoint, verify it on the disk, mark it complete, and only then delete older ones.

    The one before is kept too: where the newest is damaged later, the training goes on from there.

    The reach at each checkpoint of `training.save_every` is measured, and with analysis=checkpoints its spectra.
    The run fails where a frozen tensor moved, since the trained parameters are then not those of the method.
    """

    def __init__(self, run: Run, trainer: RlvrTrainer, published: PublishedWeights, model_key: str) -> None:
        self.run, self.trainer, self.published, self.model_key = run, trainer, published, model_key
        self.frozen = frozen_digests(trainer.model)

    def measure_reach(self, step: int) -> None:
        """Add a row to reach.jsonl; raise RuntimeError where a frozen tensor changed."""
        policy = self.trainer.accelerator.unwrap_model(self.trainer.model)
        moved = changed_tensors(self.frozen, policy)
        cfg, weights = self.trainer.cfg, sampling_weights(self.trainer.cfg, "rollout")
        # rollout.sync=adapter: vLLM has the base's weights, which bfloat16 has, and the adapter beside them
        is_apart = cfg["rollout"]["engine"] == "vllm" and cfg["rollout"].get("sync") == "adapter"
        measured = reach(policy, self.published, None if is_apart else self.trainer.rounding())
        facts: dict[str, Any] = {"reach": measured.reach, "frozen_tensors_changed": len(moved)}
        if cfg["model"]["autocast_bf16"] or weights != "float32":  # else nothing computes in bfloat16
            facts |= {"bfloat16_error": measured.bfloat16_error, "update_kept": measured.kept}
            self.warn_of_lost_update(step, weights, measured.kept.get("all"))
        add_row(self.run.reach_path, step, facts)
        if moved:
            raise RuntimeError(f"frozen tensors changed during training: {', '.join(moved[:5])}")

    def warn_of_lost_update(self, step: int, weights: str, kept: float | None) -> None:
        """Print and log a warning where the sampler has less than LEAST_KEPT of the update."""
        if kept is not None and kept < LEAST_KEPT:
            print(
                f"Step {step}: rollout.weights={weights} keeps {100 * kept:.0f} % of the update; the rest is smaller than the "
                "steps of bfloat16, and is neither sampled from nor rewarded. Use rollout.weights=stochastic or float32 "
                "(another run id), and the same for evaluation.weights."
            )
            self.run.log_event("update_lost", step=step, weights=weights, kept=kept)

    def measure_spectra(self, step: int) -> None:
        """Add a row to spectra.jsonl."""
        policy = self.trainer.accelerator.unwrap_model(self.trainer.model)
        kinds = self.trainer.cfg["model"]["linear_modules"]
        by_kind = spectra(policy_weights(policy), self.published, kinds, cached_smaller_side(self.model_key))
        add_row(self.run.spectra_path, step, {"spectra": by_kind})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.measure_reach(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()  # until every process has written its part
        if not state.is_world_process_zero:
            return
        if state.global_step % self.trainer.cfg["training"]["save_every"] == 0:  # not where time or a stop decided on it
            self.measure_reach(state.global_step)
            if analysis_of(self.trainer.cfg) == "checkpoints":
                self.measure_spectra(state.global_step)
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.trainer.save_own_state(checkpoint)
        mark_complete(checkpoint)
        for earlier in superseded(Path(args.output_dir)):
            shutil.rmtree(earlier)


class WorstCaseFirst(TrainerCallback):
    """Run one pass of full-length completions before the first step, so that too little memory shows at once.

    The optimizer's state is allocated beside it. No gradient and no change of the random numbers remain. On GPUs by default
    (`training.worst_case_first`).
    """

    def __init__(self, run: Run, trainer: Any) -> None:
        self.run, self.trainer = run, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        device, setting = self.trainer.accelerator.device, training_of(self.trainer.cfg, "worst_case_first")
        if setting == "never" or (setting == "gpu" and device.type != "cuda"):
            return
        start = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        has_state = bool(getattr(kwargs.get("optimizer"), "state", None))  # of a resumed run, in memory already
        with kept_random_state():
            dry_step(self.trainer, self.trainer.cfg, has_state)
        facts: dict[str, Any] = {"seconds": time.perf_counter() - start}
        if device.type == "cuda":
            facts["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            torch.cuda.empty_cache()
        if state.is_world_process_zero:
            self.run.log_event("worst_case", **facts)


def dry_step(trainer: Any, cfg: Resolved, has_state: bool) -> None:
    """Compute and discard the gradients of the largest forward pass that a step can have, padding included.

    `torch.autograd.grad` returns gradients without accumulating them, so no DDP or DeepSpeed hook runs. Under ZeRO a GPU holds
    neither all gradients nor the whole optimizer state; there only the first parameter's gradient is computed, which needs as
    many activations. `has_state`: the optimizer's state is in memory already.
    """
    policy = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    policy.train()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    completions, length = largest_pass(cfg)
    device, prompt = trainer.accelerator.device, cfg["data"]["max_prompt_tokens"]
    ids = torch.ones((completions, prompt + length), dtype=torch.long, device=device)
    mask = torch.ones_like(ids)
    mask[1:, 0] = 0  # all prompts but the first are padded, as in a real pass
    sharded = bool(cfg["distributed"]["deepspeed"])
    state_size = 0 if sharded or has_state else 2 * sum(parameter.numel() for parameter in trained)
    adam_state = torch.empty(state_size, device=device)  # AdamW allocates its state at its first step
    logps = patches.log_probabilities(trainer, policy, ids, mask, length)
    torch.autograd.grad(logps.sum(), trained[:1] if sharded else trained, allow_unused=True)
    del adam_state
