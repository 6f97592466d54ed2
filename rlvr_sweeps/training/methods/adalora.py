"""The parts of AdaLoRA that neither PEFT nor TRL runs: the rank schedule and the orthogonality loss, with their checkpoint."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

FILE = "adalora.pt"  # in each checkpoint


class AdaLoraSchedule(TrainerCallback):
    """A callback that updates the rank budget after each optimizer step (Zhang et al. 2023, Algorithm 1).

    It runs while the gradients still exist. Between steps the pattern of kept ranks is not in PEFT's config: with it there,
    saving would cut the tensors to the pattern, and a resumed run would have other shapes.
    """

    def __init__(self, model: Any) -> None:
        self.tuner = model.base_model
        self.config = model.peft_config["default"]
        self.pattern: dict[str, list[bool]] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.config.total_step != state.max_steps:
            raise ValueError(
                f"AdaLoRA's schedule has total_step={self.config.total_step}, but the run trains {state.max_steps} steps. "
                "Both must be equal."
            )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.config.rank_pattern = self.pattern
        self.tuner.update_and_allocate(state.global_step)  # not yet incremented: the index of the step just taken
        self.pattern, self.config.rank_pattern = self.config.rank_pattern, None

    def mean_rank(self) -> float:
        """Return the mean number of ranks kept per module: `init_r` before the schedule begins, `target_r` after its end."""
        if self.pattern is None:
            return float(self.config.init_r)
        return sum(map(sum, self.pattern.values())) / len(self.pattern)

    def orthogonality(self) -> Tensor:
        """Return `orth_reg_weight` times the mean over P and Q of ‖PᵀP − I‖ (Eq. 4): a scalar with gradient."""
        norms = []
        for name, parameter in self.tuner.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                gram = parameter @ parameter.T if ".lora_A." in name else parameter.T @ parameter
                norms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)))
        return self.config.orth_reg_weight * torch.stack(norms).mean()

    def save(self, folder: Path) -> None:
        """Write the pattern of kept ranks and the moving averages of the importance scores into a checkpoint."""
        allocator = self.tuner.rankallocator
        averages = {"ipt": allocator.ipt, "exp_avg_ipt": allocator.exp_avg_ipt, "exp_avg_unc": allocator.exp_avg_unc}
        torch.save({"pattern": self.pattern, **averages}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""

        state = torch.load(folder / FILE, weights_only=True, map_location=next(self.tuner.parameters()).device)
        self.pattern = state.pop("pattern")
        for name, value in state.items():
            setattr(self.tuner.rankallocator, name, value)
