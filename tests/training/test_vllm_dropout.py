"""Test with vLLM on the CPU that dropout follows from the run's seed and the rank, as without vLLM, also after a resume."""

import json
import os
import random
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from rlvr_sweeps.config.compose import offline_composer
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training import train as train_stage

ON_CPU = (
    "rollout=vllm", "+rollout.vllm.kv_cache_memory_bytes=67108864", "rollout.vllm.enforce_eager=true",
    "rollout.vllm.max_num_batched_tokens=16384",
)  # fmt: skip
SHORT = (
    "peft=lora", "algo=grpo", "dropout=0.1", "batch_size=16", "rollout.group_size=8", "rollout.max_tokens=14",
    "signal_check=warn", "training.save_every=2",
)  # fmt: skip


class FirstDraws(TrainerCallback):
    """The numbers that the first dropout of each step draws from, and the other generators' next numbers."""

    def __init__(self, model):
        self.steps, self.is_recorded = [], True
        first = next(module for module in model.modules() if isinstance(module, torch.nn.Dropout))
        first.register_forward_pre_hook(self.record)

    def on_step_begin(self, args, state, control, **kwargs):
        self.is_recorded = False

    def record(self, module, _):
        """Store the generators' next numbers and leave their states as they are."""
        if self.is_recorded or not module.training:
            return
        self.is_recorded = True
        states = random.getstate(), np.random.get_state()
        with torch.random.fork_rng():
            self.steps.append([*torch.rand(3).tolist(), random.random(), float(np.random.rand())])
        random.setstate(states[0])
        np.random.set_state(states[1])


def train_and_record(composer, runs_dir, *overrides, resume=None):
    """Train a run; return the numbers that dropout began with in each step, and the directory of the checkpoints."""
    cfg = composer.point([*SHORT, *overrides, f"runs_dir={runs_dir}"]).cfg
    run = Run.of(cfg)
    run.prepare(cfg)
    with mock.patch.dict(os.environ):
        trainer, _ = train_stage.build(run, cfg)
        draws = FirstDraws(trainer.model)
        trainer.add_callback(draws)
        if resume:
            trainer.load_own_state(resume)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return draws.steps, run.checkpoints_path


def main():
    """Train one step with vLLM by the ranks of torchrun, and write each rank's numbers: OUT/RANK.json."""
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    two = ("distributed=ddp", "distributed.processes=2", "training.per_device_batch_size=8")
    steps, _ = train_and_record(offline_composer(), out, *ON_CPU, *two, "steps=1", "seed=1")
    (out / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(steps))
    torch.distributed.barrier()
    os._exit(0)  # vLLM's exit handlers tear down the process groups, each rank at its own time, and some abort


if __name__ == "__main__":
    main()
    raise SystemExit

pytestmark = pytest.mark.slow
pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")


def test_the_run_s_seed_decides_dropout_as_without_vllm_and_after_a_resume(composer, tmp_path):
    """vLLM's worker sets the generators to its own seed, in the trainer's process."""
    numbers = {}
    for seed in (1, 2):
        numbers[seed], checkpoints = train_and_record(composer, tmp_path / "vllm", *ON_CPU, "steps=4", f"seed={seed}")
    without_vllm, _ = train_and_record(composer, tmp_path / "hf", "rollout=hf", "steps=1", "seed=1")
    assert numbers[1][0] == without_vllm[0]
    assert all(first != second for first, second in zip(numbers[1][0], numbers[2][0], strict=True))
    assert len({tuple(step) for seed in (1, 2) for step in numbers[seed]}) == 8, "all steps of all seeds differ"
    resumed, _ = train_and_record(
        composer, tmp_path / "vllm", *ON_CPU, "steps=4", "seed=2", resume=checkpoints / "checkpoint-2"
    )
    assert resumed == numbers[2][2:]


def test_the_ranks_of_a_run_with_vllm_draw_different_dropout_masks(tmp_path):
    from tests.training.test_distributed import torchrun

    torchrun(Path(__file__), tmp_path)
    (first,), (second,) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert all(number != other for number, other in zip(first, second, strict=True))
