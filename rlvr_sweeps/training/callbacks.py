"""What happens around a training step: its row in metrics.jsonl, checkpoints that are whole, leaving when asked."""

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from rlvr_sweeps import patches
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import analysis_of, training_of
from rlvr_sweeps.errors import Superseded
from rlvr_sweeps.files import append_rows, read_json, read_rows, write_json, write_text
from rlvr_sweeps.runs.checkpoints import checkpoints, mark_complete
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training.methods.merging import policy_weights
from rlvr_sweeps.training.methods.reach import PublishedWeights, changed, frozen_digests, reach
from rlvr_sweeps.training.methods.spectra import spectra
from rlvr_sweeps.training.methods.svd import cached_smaller_side
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
    """Appends a row to metrics.jsonl after each optimizer step; on resume drops rows the checkpoint does not know."""

    def __init__(self, run: Run, trainer: RlvrTrainer) -> None:
        self.run, self.trainer = run, trainer
        self.step_start = self.step_s = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        known = [row for row in read_rows(self.run.metrics_path) if row["step"] <= state.global_step]
        write_text(self.run.metrics_path, "".join(json.dumps(row) + "\n" for row in known))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_start = time.perf_counter()
        self.trainer.seconds.clear()
        self.trainer.columns = {}
        self.trainer.truncated_shares.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_s = time.perf_counter() - self.step_start

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "reward" not in logs or not state.is_world_process_zero:  # without: the closing summary
            return
        seconds = self.trainer.seconds
        row = {
            "step": state.global_step,
            **self.trainer.columns,
            "truncated_share": self.trainer.truncated_share,
            **{name: finite(logs.get(key)) for name, key in ROW_OF_LOG.items()},
        }
        row |= {f"{phase}_s": seconds[phase] for phase in ("rollout", "sync", "reward", "logprobs")}  # sync is in the rollout
        row |= {"update_s": self.step_s - seconds["sampling"]}
        row |= {"rest_s": self.step_s - sum(row[phase] for phase in ("rollout_s", "reward_s", "logprobs_s", "update_s"))}
        append_rows(self.run.metrics_path, [row])
        if not math.isfinite(float(logs.get("loss", 0.0))) and not self.trainer.cfg["early_stopping"]["collapse"]:
            raise FloatingPointError(f"the loss is {logs['loss']} at step {state.global_step}; see {self.run.metrics_path}")


class StopWhenAsked(TrainerCallback):
    """Ends training at the end of a step, with a checkpoint, once the run's stop file is there: on all ranks at the same step.

    Where a newer attempt at this run has begun, training ends at once and writes nothing more.
    """

    def __init__(self, run: Run, trainer: RlvrTrainer) -> None:
        self.run, self.trainer, self.stopped = run, trainer, False
        self.attempt = os.environ.get("RLVR_ATTEMPT")  # set in a job

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        accelerator = self.trainer.accelerator
        said = torch.tensor([self.look() if accelerator.is_main_process else 0], device=accelerator.device)
        word = int(accelerator.gather(said).max())
        if word == 2:
            raise Superseded(f"attempt {self.attempt} at this run leaves: a newer one has begun")
        if word == 1 and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = self.stopped = True

    def look(self) -> int:
        """1: asked to stop; 2: superseded; 0: neither."""
        if self.attempt and str((read_json(self.run.attempt_path) or {}).get("attempt", self.attempt)) != self.attempt:
            return 2
        return int(self.run.stop_path.exists())

    def saved(self) -> None:
        """Say that this attempt saved; the supervisor reads it."""
        if self.attempt:
            write_json(self.run.saved_path, int(self.attempt))


def finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(float(value)) else None


def add_row(path: Path, step: int, facts: dict[str, Any]) -> None:
    """Add the row of a checkpoint; on resume rows of this step and later are replaced."""
    known = [row for row in read_rows(path) if row["step"] < step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in [*known, {"step": step, **facts}]))


class CheckpointKeeper(TrainerCallback):
    """Completes a checkpoint with our own state, marks it complete, and only then deletes the one before.

    Measures the reach at each, and stops the run if a frozen tensor moved: what was trained is then not the method. Where the
    analysis is asked for at checkpoints, takes the spectra too.
    """

    def __init__(self, run: Run, trainer: RlvrTrainer, published: PublishedWeights, model_key: str) -> None:
        self.run, self.trainer, self.published, self.model_key = run, trainer, published, model_key
        self.frozen = frozen_digests(trainer.model)

    def measure(self, step: int) -> None:
        policy = self.trainer.accelerator.unwrap_model(self.trainer.model)
        drifted = changed(self.frozen, policy)
        add_row(self.run.reach_path, step, {"reach": reach(policy, self.published), "frozen_tensors_changed": len(drifted)})
        if drifted:
            raise RuntimeError(f"frozen tensors changed during training: {', '.join(drifted[:5])}")

    def take_spectra(self, step: int) -> None:
        policy = self.trainer.accelerator.unwrap_model(self.trainer.model)
        kinds = self.trainer.cfg["model"]["linear_modules"]
        found = spectra(policy_weights(policy), self.published, kinds, cached_smaller_side(self.model_key))
        add_row(self.run.spectra_path, step, {"spectra": found})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.measure(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()  # until every process has written its part
        if not state.is_world_process_zero:
            return
        self.measure(state.global_step)
        if analysis_of(self.trainer.cfg) == "checkpoints":
            self.take_spectra(state.global_step)
        here = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.trainer.save_own_state(here)
        mark_complete(here)
        for other in checkpoints(Path(args.output_dir)):
            if other != here:
                shutil.rmtree(other)


class WorstCaseFirst(TrainerCallback):
    """Forward and backward over one pass of full-length completions, beside room for the optimizer's state.

    Leaves nothing behind: no gradient, no random number drawn. On GPUs by default (`training.worst_case_first`).
    """

    def __init__(self, run: Run, trainer: Any) -> None:
        self.run, self.trainer = run, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        device, wanted = self.trainer.accelerator.device, training_of(self.trainer.cfg, "worst_case_first")
        if wanted == "never" or (wanted == "gpu" and device.type != "cuda"):
            return
        start = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        resumed = bool(getattr(kwargs.get("optimizer"), "state", None))  # its state is there already
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            dry_step(self.trainer, self.trainer.cfg, resumed)
        facts: dict[str, Any] = {"seconds": time.perf_counter() - start}
        if device.type == "cuda":
            facts["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            torch.cuda.empty_cache()
        if state.is_world_process_zero:
            self.run.log_event("worst_case", **facts)


def dry_step(trainer: Any, cfg: Resolved, has_state: bool) -> None:
    """Gradients as an update computes them, of `per_device_batch_size` completions of full length, and forgotten.

    `torch.autograd.grad` gives them to nobody, so neither DDP nor DeepSpeed takes this for a pass of its own. Under ZeRO,
    where a GPU holds neither all gradients nor the whole state, only the first layer's first: it takes as many activations.
    """
    policy = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    policy.train()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    rows, answer = cfg["training"]["per_device_batch_size"], cfg["rollout"]["max_tokens"]
    ids = torch.ones((rows, cfg["data"]["max_prompt_tokens"] + answer), dtype=torch.long, device=trainer.accelerator.device)
    sharded = bool(cfg["distributed"]["deepspeed"])
    state = 0 if sharded or has_state else 2 * sum(parameter.numel() for parameter in trained)
    room = torch.empty(state, device=ids.device)  # of AdamW, which has none before its first step
    logps = patches.log_probabilities(trainer, policy, ids, torch.ones_like(ids), answer)
    torch.autograd.grad(logps.sum(), trained[:1] if sharded else trained, allow_unused=True)
    del room
