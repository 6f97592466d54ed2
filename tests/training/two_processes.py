"""Train methods for two steps by two processes and write the results as JSON; test_distributed.py starts it with torchrun.

torchrun --nproc-per-node=2 tests/training/two_processes.py OUT PROBLEMS KIND METHOD[,OVERRIDE...]...
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from rlvr_sweeps.config.compose import offline_composer
from rlvr_sweeps.config.settings import dials_read
from rlvr_sweeps.files import read_rows
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training import train as train_stage


def overrides(composer, method, problems, kind, processes):
    """Return overrides for two steps of sixteen completions, without dropout, so that one process and two agree."""
    method, *further = method.split(",")
    dropout = ["dropout=0"] if "dropout" in dials_read(composer.compose([f"peft={method}"])) else []
    return [
        f"peft={method}", "algo=dapo", "steps=2", "batch_size=16", "rollout.group_size=4", "rollout.max_tokens=24", "lr=1e-4",
        f"training.per_device_batch_size={16 // processes}", "training.gradient_checkpointing=true", "training.save_every=2",
        f"data.path={problems}", "data.problems=null", f"distributed={kind}", f"distributed.processes={processes}",
        *dropout, *further,
    ]  # fmt: skip


def digest(model):
    """Return the hash of a model's trained parameters."""
    total = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            total.update(parameter.detach().float().numpy().tobytes())
    return total.hexdigest()


def main():
    """Train each method and write OUT/KIND.json."""
    out, problems, kind, *methods = sys.argv[1:]
    torch.set_num_threads(1)
    composer = offline_composer()
    world = torch.distributed
    results = {}
    for method in methods:
        AcceleratorState._reset_state()
        unset_hf_deepspeed_config()
        cfg = composer.point([*overrides(composer, method, problems, kind, 2), f"runs_dir={out}/{kind}"]).cfg
        run = Run.of(cfg)
        run.prepare(cfg)
        trainer, facts = train_stage.build(run, cfg)
        assert facts["asked"] == facts["built"] and facts["built"]["processes"] == 2
        trainer.train()
        weights = digest(trainer.accelerator.unwrap_model(trainer.model))
        weights_of_ranks = [None, None]
        world.all_gather_object(weights_of_ranks, weights)
        optimizer = trainer.model_wrapped.optimizer if kind.startswith("zero") else trainer.optimizer
        results[method] = {
            "weights": weights_of_ranks,
            "rows": read_rows(run.metrics_path),
            "lrs": sorted({group["lr"] for group in optimizer.param_groups if group["params"]}),
            "dtypes": sorted({str(value.dtype) for value in trainer.accelerator.unwrap_model(trainer.model).parameters()}),
        }
    if world.get_rank() == 0:
        (Path(out) / f"{kind}.json").write_text(json.dumps(results))
    world.barrier()
    sys.stdout.flush()
    os._exit(0)  # vLLM's exit handlers tear down the process groups, each rank at its own time, and some abort


if __name__ == "__main__":
    main()
