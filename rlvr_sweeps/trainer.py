"""TRL's GRPOTrainer with this project's rollouts, optimizer and bookkeeping; the loss is TRL's."""

import json
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from rlvr_sweeps.adapters import loraplus_optimizer
from rlvr_sweeps.identity import Resolved
from rlvr_sweeps.run import Run, checkpoints, mark_complete, read_rows, write_text
from rlvr_sweeps.sampling import sample, seed_of
from rlvr_sweeps.sync import merged

# metrics.jsonl's names, and TRL's for the same numbers.
ROW_OF_LOG = {
    "reward_mean": "reward",
    "reward_std": "reward_std",
    "zero_std_share": "frac_reward_zero_std",  # groups whose completions are all right or all wrong
    "completion_tokens_mean": "completions/mean_length",
    "completion_tokens_max": "completions/max_length",
    "truncated_share": "completions/clipped_ratio",
    "entropy": "entropy",
    "clip_share": "clip_ratio/region_mean",
    "grad_norm": "grad_norm",
    "loss": "loss",
    "lr": "learning_rate",
    "tokens_seen": "num_tokens",
}


class RlvrTrainer(GRPOTrainer):
    """Rollouts from merged weights with a seed per completion; LoRA+'s groups; seconds by phase."""

    optimizer: Any

    def __init__(self, cfg: Resolved, **kwargs: Any) -> None:
        self.cfg = cfg
        self.seconds: dict[str, float] = defaultdict(float)
        super().__init__(**kwargs)

    def create_optimizer(self, model: Any = None) -> Any:
        ratio = self.cfg["peft"]["lr_ratio"]
        if ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
        settings = {"weight_decay": self.args.weight_decay, **settings}
        self.optimizer = loraplus_optimizer(model or self.model, ratio, optimizer, **settings)
        return self.optimizer

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, has_tool_images: bool = False
    ) -> Any:
        if self.use_vllm:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, has_tool_images)
        rollout, first = self.cfg["rollout"], self.accelerator.process_index * len(prompt_ids)
        step = self.state.global_step
        seeds = [seed_of(self.cfg["seed"], "rollout", step, first + row) for row in range(len(prompt_ids))]
        policy = self.accelerator.unwrap_model(self.model_wrapped)
        with self.timed("rollout"), merged(policy), self.accelerator.autocast():
            completions = sample(
                policy, prompt_ids, seeds, max_tokens=rollout["max_tokens"], temperature=rollout["temperature"],
                top_p=rollout["top_p"], pad_id=self.processing_class.pad_token_id, end_ids=self.eos_token_ids,
            )  # fmt: skip
        return completions, None

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.timed("reward"):
            return super()._calculate_rewards(*args, **kwargs)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start


class MetricsWriter(TrainerCallback):
    """Appends a row to metrics.jsonl after each optimizer step; on resume drops rows the checkpoint does not know."""

    def __init__(self, run: Run, trainer: RlvrTrainer) -> None:
        self.run, self.trainer = run, trainer
        self.step_start = self.step_s = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        known = [row for row in read_rows(self.run.metrics_path) if row["step"] <= state.global_step]
        write_text(self.run.metrics_path, "".join(json.dumps(row) + "\n" for row in known))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_start = time.perf_counter()
        self.trainer.seconds.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_s = time.perf_counter() - self.step_start

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "reward" not in logs:  # the closing summary
            return
        rollout_s, reward_s = self.trainer.seconds["rollout"], self.trainer.seconds["reward"]
        row = {"step": state.global_step, **{name: finite(logs.get(key)) for name, key in ROW_OF_LOG.items()}}
        row |= {"rollout_s": rollout_s, "reward_s": reward_s, "update_s": self.step_s - rollout_s - reward_s}
        with self.run.metrics_path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if not math.isfinite(float(logs.get("loss", 0.0))):
            raise FloatingPointError(f"the loss is {logs['loss']} at step {state.global_step}; see {self.run.metrics_path}")


def finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(float(value)) else None


class CheckpointKeeper(TrainerCallback):
    """Marks a checkpoint complete once all of it is written, and only then deletes the one before."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        here = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        mark_complete(here)
        for other in checkpoints(Path(args.output_dir)):
            if other != here:
                shutil.rmtree(other)
