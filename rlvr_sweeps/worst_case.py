"""A step of the longest possible completions before the first real one: what has no room fails in a minute, not in a week."""

import time
from typing import Any

import torch
from transformers import TrainerCallback

from rlvr_sweeps.identity import Resolved, training_of
from rlvr_sweeps.run import Run


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
    logps, *_ = trainer._get_per_token_logps_and_entropies(policy, ids, torch.ones_like(ids), answer, compute_entropy=True)
    torch.autograd.grad(logps.sum(), trained[:1] if sharded else trained, allow_unused=True)
    del room
