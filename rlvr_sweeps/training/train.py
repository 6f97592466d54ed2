"""The train stage: train one run with GRPO, and export the merged model into the run's directory."""

import copy
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import GRPOConfig

from rlvr_sweeps import patches
from rlvr_sweeps.assets.locations import model_key
from rlvr_sweeps.assets.problems import (
    all_prompt_ids,
    load_problems,
    messages,
    overlap_by_benchmark,
    split,
    warn_of_unreadable_golds,
)
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import accumulation
from rlvr_sweeps.config.verifiers import verifier_of
from rlvr_sweeps.errors import Refused, Stopped, StoppedInStep
from rlvr_sweeps.files import write_json
from rlvr_sweeps.runs.checkpoints import choose, step_of
from rlvr_sweeps.runs.checksums import write_checksums
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training import build_check
from rlvr_sweeps.training.callbacks import CheckpointKeeper, MetricsWriter, RolloutWriter, StopOnRequest, WorstCaseFirst
from rlvr_sweeps.training.early_stopping import EarlyStopping, last_step
from rlvr_sweeps.training.methods.adapters import attach, has_residual
from rlvr_sweeps.training.methods.merging import policy_weights
from rlvr_sweeps.training.methods.svd import write_tensors
from rlvr_sweeps.training.models import load_model, published_weights
from rlvr_sweeps.training.rewards import rewards
from rlvr_sweeps.training.signal_check import SignalCheck
from rlvr_sweeps.training.trainer import RlvrTrainer


def train(run: Run, cfg: Resolved) -> None:
    """Train until `steps`, from the newest whole checkpoint where one exists, and export the merged model.

    Raises Refused where the built trainer does not match the configuration, and Stopped where the run was asked to stop.
    """
    trainer, facts = build(run, cfg)
    main = trainer.accelerator.is_main_process
    (resume,) = broadcast_object_list([checkpoint_to_resume(run) if main else None])
    if main:
        write_json(run.record_path, facts)
        run.log_event("train", resumed_from=resume.name if resume else None)
    build_check.refuse_differences(facts["asked"], facts["built"])
    build_check.refuse_different_batch_sizes(trainer.accelerator, cfg)
    if resume:
        trainer.load_own_state(resume)
    stopper = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, StopOnRequest))
    if resume and step_of(resume) >= last_step(run, cfg):  # the run was killed between the last step and the export
        patches.load_checkpoint_weights(trainer, resume)
    else:
        try:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except StoppedInStep:
            stopper.save_last_step()
    if stopper.stopped:
        if main:
            stopper.record_saved()
        trainer.accelerator.wait_for_everyone()
        raise Stopped
    if main:
        run.write_phase("writing the trained model")
        export(trainer, run, cfg)
    trainer.accelerator.wait_for_everyone()


def checkpoint_to_resume(run: Run) -> Path | None:
    """Return the newest checkpoint that verifies; None where training begins at step 0.

    Damaged checkpoints are moved to the run's old/, and those that a killed writer left are removed; both are printed.
    """
    choice = choose(run.checkpoints_path)
    for folder in choice.incomplete:
        print(f"Removed the incomplete checkpoint {folder}")
        shutil.rmtree(folder)
    for damage in choice.damaged.values():
        print(f"{damage} The training goes on from {choice.resume.name if choice.resume else 'step 0'}.")
    run.set_aside(list(choice.damaged), "; ".join(f"{damage.path}: {damage.why}" for damage in choice.damaged.values()))
    return choice.resume


def build(run: Run, cfg: Resolved) -> tuple[RlvrTrainer, dict[str, Any]]:
    """Return the trainer, and the content of train.json: the configuration's record, the built one, data and versions."""
    model, tokenizer = load_model(cfg)
    key = model_key(cfg)
    expected = build_check.expected_record(cfg, model)
    rows, prompts, left_out = training_rows(cfg, tokenizer)
    overlap = overlap_by_benchmark(cfg["benchmark"], [row["prompt"][-1]["content"] for row in rows])
    trainer = RlvrTrainer(
        cfg=cfg,
        model=attach(model, cfg["peft"], cfg["seed"], key, prompts[:256], stored_start(run)),
        reward_funcs=rewards(cfg),
        args=GRPOConfig(**trl_settings(run, cfg)),
        rows=rows,
        processing_class=tokenizer,
    )
    for console_callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(console_callback)
    if trainer.accelerator.is_main_process:
        trainer.announce = run.write_phase
    trainer.add_callback(MetricsWriter(run, trainer))
    trainer.add_callback(RolloutWriter(run, trainer))
    trainer.add_callback(WorstCaseFirst(run, trainer))
    trainer.add_callback(SignalCheck(run, trainer, key))
    if cfg["early_stopping"]["name"] != "none":
        trainer.add_callback(EarlyStopping(run, trainer))
    trainer.add_callback(StopOnRequest(run, trainer))
    trainer.published = published_weights(cfg)
    trainer.add_callback(CheckpointKeeper(run, trainer, trainer.published, key))
    trainer.create_optimizer()
    is_compared = trainer.accelerator.is_main_process and verifier_of(cfg).is_math
    golds = {row["problem"]: row["gold"] for row in rows} if is_compared else {}
    facts = {
        "asked": expected,
        "built": build_check.built_record(trainer, cfg),
        "optimizer": type(trainer.optimizer).__name__,
        "parameters": build_check.parameter_counts(trainer.model),
        "data": {
            "problems": len(rows),
            "left_out_too_long": left_out,
            "overlap": overlap,
            "unreadable_golds": warn_of_unreadable_golds(golds, cfg["data"]["path"]),
        },
        "model_key": key,
        "verifier": verifier_of(cfg).label(),
        "surroundings": build_check.surroundings(),
        "vllm": trainer.vllm_generation.engine_facts() if trainer.use_vllm else None,
    }
    if has_residual(cfg["peft"]) and trainer.accelerator.is_main_process and not run.start_path.exists():
        start = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
        write_tensors(start, run.start_path)
    trainer.optimizer = None  # Trainer.train makes it again, once the model is on its device
    return trainer, facts


def stored_start(run: Run) -> dict[str, torch.Tensor] | None:
    """Return the trainable parameters at step 0 that an earlier process of the run stored; None where there are none."""
    return load_file(run.start_path) if run.start_path.exists() else None


def training_rows(cfg: Resolved, tokenizer: Any) -> tuple[list[dict[str, Any]], list[list[int]], int]:
    """Return the trainer's rows, their prompts as token ids, and the number of problems whose prompt is too long.

    Raises Refused where no problem is left.
    """
    system, limit = cfg["model"]["system_prompt"], cfg["data"]["max_prompt_tokens"]
    trained, _ = split(load_problems(cfg["data"]), cfg["data"].get("holdout", 0))
    prompts = all_prompt_ids(tokenizer, trained, system)
    short = [(problem, ids) for problem, ids in zip(trained, prompts, strict=True) if len(ids) <= limit]
    if not short:
        raise Refused(
            f"No problem of {cfg['data']['path']} has a prompt of at most data.max_prompt_tokens={limit} tokens. Set a larger "
            "limit."
        )
    rows: list[dict[str, Any]] = [
        {"prompt": messages(problem, system), "gold": problem.answer, "problem": problem.id} for problem, _ in short
    ]
    if not verifier_of(cfg).is_math:
        for row, (problem, _) in zip(rows, short, strict=True):
            row["columns"] = {**problem.columns, "prompt": row["prompt"]}
    return rows, [ids for _, ids in short], len(trained) - len(short)


def trl_settings(run: Run, cfg: Resolved) -> dict[str, Any]:
    """Return GRPOConfig's arguments: those that follow from the dials, and the `trl` keys of training, algo and rollout.

    Raises Refused for a key that is set twice.
    """
    per_step = accumulation(cfg)
    derived = {
        "output_dir": str(run.checkpoints_path),
        "max_steps": cfg["steps"],
        "learning_rate": cfg["lr"],
        "seed": cfg["seed"],
        "per_device_train_batch_size": cfg["training"]["per_device_batch_size"],
        "gradient_accumulation_steps": per_step,
        "steps_per_generation": per_step,
        "gradient_checkpointing": cfg["training"]["gradient_checkpointing"],
        "num_generations": cfg["rollout"]["group_size"],
        "max_completion_length": cfg["rollout"]["max_tokens"],
        "temperature": cfg["rollout"]["temperature"],
        "top_p": cfg["rollout"]["top_p"],
        "save_steps": cfg["training"]["save_every"],
        "save_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # the filter would log 0 for a loss that is NaN
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": cfg["model"]["autocast_bf16"] and not cfg["distributed"]["deepspeed"],  # DeepSpeed: torch_autocast
        "use_cpu": not torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "vllm_enable_sleep_mode": cfg["rollout"].get("sleep", False),
        "deepspeed": copy.deepcopy(cfg["distributed"]["deepspeed"]) or None,
    }
    settings = dict(derived)
    for origin, keys in [(name, cfg[name]["trl"]) for name in ("training", "algo", "rollout")]:
        for key in keys:
            if key in settings:
                raise Refused(f"{origin}.trl.{key} is set elsewhere already, to {settings[key]!r}. Remove one of the two.")
        settings |= keys
    return settings


def export(trainer: RlvrTrainer, run: Run, cfg: Resolved) -> None:
    """Write merged/, and for adapters adapter/, under temporary names, then rename them.

    Raises RuntimeError where the merged weights are not exactly those of the base model's architecture.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in policy_weights(model)}
    loaded = plain.load_state_dict(weights, strict=False, assign=True)
    plain.tie_weights()
    missing = [name for name, parameter in plain.named_parameters() if parameter.is_meta]
    if loaded.unexpected_keys or missing:
        raise RuntimeError(f"The merged model does not fit its base: unexpected {loaded.unexpected_keys}, missing {missing}.")
    plain.generation_config = model.generation_config

    def write(folder: Path) -> None:
        plain.save_pretrained(folder)
        trainer.processing_class.save_pretrained(folder)

    replace_folder(run.merged_path, write)
    if cfg["peft"]["trains"] == "adapter":
        replace_folder(run.adapter_path, model.save_pretrained)


def replace_folder(path: Path, write: Any) -> None:
    """Call `write` with a temporary folder, add the checksums of its files, then rename it to `path`."""
    temporary = path.with_name(f".{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT tries to read the base's vocabulary size from the hub
        write(temporary)
    write_checksums(temporary)
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)
