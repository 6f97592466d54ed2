"""TODO: rlvr_sweeps.training.patches."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from trl.trainer import grpo_trainer

from rlvr_sweeps.config.schema import Resolved


@contextmanager
def engine_of_ours(cfg: Resolved) -> Iterator[None]:
    """TRL's constructor makes its engine by this name: inside, it makes ours."""
    if cfg["rollout"]["engine"] != "vllm":
        yield
        return
    from rlvr_sweeps.training.vllm_rollouts import VllmRollouts

    theirs = grpo_trainer.VLLMGeneration
    grpo_trainer.VLLMGeneration = partial(VllmRollouts, cfg)
    try:
        yield
    finally:
        grpo_trainer.VLLMGeneration = theirs


def keep_weights_as_they_are() -> None:
    """vLLM for CPUs packs weights for its kernels when it loads them, and then takes no new ones: use torch's kernels."""
    import vllm.model_executor.layers.utils as layers

    def plain(layer: Any, remove_weight: bool) -> None:  # noqa: ARG001 - named so by its caller
        layer.cpu_linear = torch.nn.functional.linear

    layers.dispatch_cpu_unquantized_gemm = plain
