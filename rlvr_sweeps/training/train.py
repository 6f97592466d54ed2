"""The train stage: one run's GRPO training, from its directory and into it."""

import copy
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import GRPOConfig

from rlvr_sweeps import patches
from rlvr_sweeps.assets.locations import model_key, weights_folder
from rlvr_sweeps.assets.problems import all_prompt_ids, load_problems, messages, overlap_by_benchmark, split
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import accumulation
from rlvr_sweeps.errors import Refused, Stopped
from rlvr_sweeps.files import write_json
from rlvr_sweeps.grading.grader import grade_all
from rlvr_sweeps.runs.checkpoints import checkpoints, latest_complete_checkpoint, step_of
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training import build_check
from rlvr_sweeps.training.callbacks import CheckpointKeeper, MetricsWriter, StopWhenAsked, WorstCaseFirst
from rlvr_sweeps.training.dynamic_sampling import overlong_punishment
from rlvr_sweeps.training.early_stopping import EarlyStopping, last_step
from rlvr_sweeps.training.methods.adapters import attach
from rlvr_sweeps.training.methods.merging import policy_weights
from rlvr_sweeps.training.methods.reach import PublishedWeights
from rlvr_sweeps.training.models import load_model
from rlvr_sweeps.training.trainer import RlvrTrainer


def train(run: Run, cfg: Resolved) -> None:
    """Train until `steps`, from the latest complete checkpoint where there is one, and export the merged model."""
    trainer, facts = build(run, cfg)
    main = trainer.accelerator.is_main_process
    resume = latest_complete_checkpoint(run.checkpoints_path)
    if main:
        write_json(run.record_path, facts)
        for folder in checkpoints(run.checkpoints_path):
            if folder != resume:
                print(f"{folder} is incomplete and was removed")
                shutil.rmtree(folder)
        run.log_event("train", resumed_from=resume.name if resume else None)
    build_check.compare(facts["asked"], facts["built"])
    build_check.same_everywhere(trainer.accelerator, cfg)
    if resume:
        trainer.load_own_state(resume)
    if resume and step_of(resume) >= last_step(run, cfg):  # killed after the last step: only the export is missing
        patches.load_checkpoint_weights(trainer, resume)
    else:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    stopper = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, StopWhenAsked))
    if stopper.stopped:
        if main:
            stopper.saved()
        trainer.accelerator.wait_for_everyone()
        raise Stopped
    if main:
        export(trainer, run, cfg)
    trainer.accelerator.wait_for_everyone()


def build(run: Run, cfg: Resolved) -> tuple[RlvrTrainer, dict[str, Any]]:
    """The trainer with its optimizer, and train.json: what was asked, what was built, and what surrounds it."""
    model, tokenizer = load_model(cfg)
    key = model_key(cfg)
    wanted = build_check.asked(cfg, model)
    rows, prompts, left_out = training_rows(cfg, tokenizer)
    overlap = overlap_by_benchmark(cfg["benchmark"], [row["prompt"][-1]["content"] for row in rows])
    trainer = RlvrTrainer(
        cfg=cfg,
        model=attach(model, cfg["peft"], cfg["seed"], key, prompts[:256]),
        reward_funcs=rewards(cfg),
        args=GRPOConfig(**trl_settings(run, cfg)),
        rows=rows,
        processing_class=tokenizer,
    )
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    trainer.add_callback(MetricsWriter(run, trainer))
    trainer.add_callback(WorstCaseFirst(run, trainer))
    if cfg["early_stopping"]["name"] != "none":
        trainer.add_callback(EarlyStopping(run, trainer))
    trainer.add_callback(StopWhenAsked(run, trainer))
    trainer.add_callback(CheckpointKeeper(run, trainer, PublishedWeights(weights_folder(cfg)), key))
    trainer.create_optimizer()
    facts = {
        "asked": wanted,
        "built": build_check.built(trainer, cfg),
        "optimizer": type(trainer.optimizer).__name__,
        "parameters": build_check.parameter_counts(trainer.model),
        "data": {"problems": len(rows), "left_out_too_long": left_out, "overlap": overlap},
        "model_key": key,
        "surroundings": build_check.surroundings(),
    }
    if cfg["peft"]["not_the_base_in_training"] and trainer.accelerator.is_main_process and not run.start_path.exists():
        start = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
        save_file(start, run.start_path)
    trainer.optimizer = None  # train() makes its own, after the model is on its device
    return trainer, facts


def training_rows(cfg: Resolved, tokenizer: Any) -> tuple[list[dict[str, Any]], list[list[int]], int]:
    """The trainer's rows, their prompts as token ids, and how many problems were left out because theirs is too long."""
    system, limit = cfg["model"]["system_prompt"], cfg["data"]["max_prompt_tokens"]
    trained, _ = split(load_problems(cfg["data"]), cfg["data"].get("holdout", 0))
    prompts = all_prompt_ids(tokenizer, trained, system)
    kept = [(problem, ids) for problem, ids in zip(trained, prompts, strict=True) if len(ids) <= limit]
    if not kept:
        raise Refused(f"No problem of {cfg['data']['path']} has a prompt of at most {limit} tokens (data.max_prompt_tokens).")
    rows = [{"prompt": messages(problem, system), "gold": problem.answer, "problem": problem.id} for problem, _ in kept]
    return rows, [ids for _, ids in kept], len(trained) - len(kept)


def rewards(cfg: Resolved) -> list[Any]:
    """The verifier first; DAPO's overlong punishment beside it where the objective asks for it."""
    buffer = cfg["algo"]["overlong_buffer"]

    def accuracy(completions: list[Any], gold: list[str], **_: Any) -> list[float]:
        """The paper's reward: 1 for a right answer in the right form, else 0."""
        texts = [completion[0]["content"] for completion in completions]
        return [float(verdict.correct) for verdict in grade_all(texts, gold, cfg["grading"])]

    return [accuracy, overlong_punishment(cfg["rollout"]["max_tokens"], buffer)] if buffer else [accuracy]


def trl_settings(run: Run, cfg: Resolved) -> dict[str, Any]:
    """GRPOConfig's arguments: what the YAML states, and what follows from the dials. Nothing is said twice."""
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
        "logging_nan_inf_filter": False,  # on, it reports 0 for a loss that is NaN
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": cfg["model"]["autocast_bf16"] and not cfg["distributed"]["deepspeed"],  # DeepSpeed: torch_autocast
        "use_cpu": not torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "deepspeed": copy.deepcopy(cfg["distributed"]["deepspeed"]) or None,
    }
    settings = dict(derived)
    for origin, stated in [(name, cfg[name]["trl"]) for name in ("training", "algo", "rollout")]:
        for key in stated:
            if key in settings:
                raise Refused(f"{origin}.trl.{key} is already decided elsewhere ({settings[key]!r}); say it in one place.")
        settings |= stated
    return settings


def export(trainer: RlvrTrainer, run: Run, cfg: Resolved) -> None:
    """Write merged/ (and adapter/, for adapters) under temporary names, then rename."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in policy_weights(model)}
    loaded = plain.load_state_dict(weights, strict=False, assign=True)
    plain.tie_weights()
    lost = [name for name, parameter in plain.named_parameters() if parameter.is_meta]
    if loaded.unexpected_keys or lost:
        raise RuntimeError(f"the merged model does not fit its base: unexpected {loaded.unexpected_keys}, missing {lost}")
    plain.generation_config = model.generation_config

    def write(folder: Path) -> None:
        plain.save_pretrained(folder)
        trainer.processing_class.save_pretrained(folder)

    replace_folder(run.merged_path, write)
    if cfg["peft"]["trains"] == "adapter":
        replace_folder(run.adapter_path, model.save_pretrained)


def replace_folder(place: Path, write: Any) -> None:
    temporary = place.with_name(f".{place.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT tries to ask the hub for the base's vocabulary
        write(temporary)
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)
