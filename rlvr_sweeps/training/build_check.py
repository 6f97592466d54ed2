"""Compare the configuration with the trainer that was built from it: two flat records with the same keys."""

import os
import platform
from collections import Counter
from importlib.metadata import version
from typing import Any

import torch

from rlvr_sweeps import versions
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import accumulation
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.training.methods.adapters import expected_scaling, is_trained_parameter
from rlvr_sweeps.training.methods.merging import BASE, tuner_layers
from rlvr_sweeps.versions import commit

Record = dict[str, Any]


def expected_record(cfg: Resolved, model: Any) -> Record:
    """Return the record of the configuration; `model` is the base, before a method is attached."""
    method = cfg["peft"]
    record: Record = {
        "processes": cfg["distributed"]["processes"],
        "completions_per_step": cfg["batch_size"],
        "accumulation": accumulation(cfg),
        "steps": cfg["steps"],
        "lr": cfg["lr"],
        "group_size": cfg["rollout"]["group_size"],
        "max_completion_tokens": cfg["rollout"]["max_tokens"],
        **{f"algo.{key}": value for key, value in sorted(cfg["algo"]["trl"].items())},
        "rollout.engine": cfg["rollout"]["engine"],
        **{f"rollout.{key}": value for key, value in sorted(cfg["rollout"]["trl"].items())},
    }
    if method["trains"] == "everything":
        return record | {"adapter": None, "trained": ["everything"]}
    config = method["config"]
    targets = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in config["target_modules"]}
    return record | {
        "adapter": config["peft_type"],
        "trained": sorted(method["trained"]),
        "modules": dict(sorted(Counter(name.rpartition(".")[2] for name in targets).items())),
        "scaling": expected_scaling(method),
        "lr_ratio": method["lr_ratio"] or 1.0,
        **{f"peft.{key}": plain_value(value) for key, value in sorted(config.items())},
    }


def built_record(trainer: Any, cfg: Resolved) -> Record:
    """Return the same keys read from the trainer, its optimizer and its model."""
    args, method = trainer.args, cfg["peft"]
    processes = trainer.accelerator.num_processes
    rates = sorted({group["lr"] for group in trainer.optimizer.param_groups if group["params"]})
    record: Record = {
        "processes": processes,
        "completions_per_step": args.per_device_train_batch_size * args.gradient_accumulation_steps * processes,
        "accumulation": args.gradient_accumulation_steps,
        "steps": args.max_steps,
        "lr": rates[0],
        "group_size": trainer.num_generations,
        "max_completion_tokens": trainer.max_completion_length,
        **{f"algo.{key}": live_setting(trainer, key) for key in sorted(cfg["algo"]["trl"])},
        "rollout.engine": "vllm" if trainer.use_vllm else "hf",
        **{f"rollout.{key}": live_setting(trainer, key) for key in sorted(cfg["rollout"]["trl"])},
    }
    model = trainer.accelerator.unwrap_model(trainer.model)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if method["trains"] == "everything":
        everything = len(trainable) == len(list(model.parameters())) and not tuner_layers(model)
        return record | {"adapter": None, "trained": ["everything"] if everything else trainable}
    layers = tuner_layers(model)
    config = model.peft_config["default"]
    kinds = {part for name in trainable for part in name.split(".") if part in method["trained"]}
    kinds |= {name for name in trainable if not is_trained_parameter(name, method)}  # unexpected parameters, by their full name
    scalings: set[Any] = (
        {layer.scaling["default"] for layer in layers.values()} if expected_scaling(method) is not None else {None}
    )
    return record | {
        "adapter": config.peft_type.value,
        "trained": sorted(kinds),
        "modules": dict(sorted(Counter(name.rpartition(".")[2] for name in layers).items())),
        "scaling": scalings.pop() if len(scalings) == 1 else sorted(scalings),
        "lr_ratio": rates[-1] / rates[0],
        **{f"peft.{key}": plain_value(getattr(config, key)) for key in sorted(method["config"])},
    }


def live_setting(trainer: Any, key: str) -> Any:
    """Return a setting of GRPOConfig from the trainer's attribute where it has one, else from its arguments."""
    live = {
        "loss_type": "loss_type", "scale_rewards": "scale_rewards", "epsilon": "epsilon_low", "epsilon_high": "epsilon_high",
        "use_vllm": "use_vllm", "vllm_mode": "vllm_mode", "vllm_importance_sampling_mode": "vllm_importance_sampling_mode",
        "vllm_importance_sampling_clip_max": "vllm_importance_sampling_clip_max",
    }  # fmt: skip
    return getattr(trainer, live[key]) if key in live else getattr(trainer.args, key)


def plain_value(value: Any) -> Any:
    """Return an enum as its value and a set as a sorted list, so that records can be compared and printed."""
    if isinstance(value, (set, list, tuple)):
        return sorted(value)
    return getattr(value, "value", value)


def refuse_differences(expected: Record, built: Record) -> None:
    """Raise Refused with both values of every key on which the two records differ."""
    wrong = [key for key in sorted(expected.keys() | built.keys()) if not equal(expected.get(key), built.get(key))]
    if wrong:
        lines = "\n".join(f"  {key}: configured {expected.get(key)!r}, built {built.get(key)!r}" for key in wrong)
        raise Refused(f"The trainer that was built does not match the configuration, so nothing was trained:\n{lines}")


def refuse_different_batch_sizes(accelerator: Any, cfg: Resolved) -> None:
    """Raise RuntimeError unless all processes have the same number of completions per forward pass; else they would deadlock.

    On several nodes each process reads per_device.json itself, and a network file system may return an old version to one.
    """
    own_size = torch.tensor([cfg["training"]["per_device_batch_size"]], device=accelerator.device)
    sizes = accelerator.gather(own_size).tolist()
    if len(set(sizes)) > 1:
        raise RuntimeError(
            f"processes begin with different numbers of completions per forward pass, {sizes}. Start the run again."
        )


def equal(expected: Any, built: Any) -> bool:
    """Return whether two values of a record are equal, floats up to a relative error of 1e-9."""
    if isinstance(expected, float) and isinstance(built, (float, int)):
        return abs(expected - built) <= 1e-9 * max(abs(expected), abs(built))
    return bool(expected == built)


def parameter_counts(model: Any) -> dict[str, int]:
    """Return the numbers of trainable scalars and of the base model's scalars (the denominator of the paper's share)."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    layers = tuner_layers(model)
    inside = tuple(f"{name}." for name in layers)
    of_base = BASE if layers else ""
    unadapted = (item for item in model.named_parameters() if item[0].startswith(of_base) and not item[0].startswith(inside))
    base = sum(parameter.numel() for _, parameter in unadapted)
    base += sum(parameter.numel() for layer in layers.values() for parameter in layer.get_base_layer().parameters())
    return {"trainable": trainable, "base": base}


def surroundings() -> Record:
    """Return versions, commit and machine: the other facts that results may depend on."""

    return {
        "commit": commit(),
        "python": platform.python_version(),
        "host": platform.node(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{package: version(package) for package in versions.RECORDED_PACKAGES},
        **versions.installed(),
    }
