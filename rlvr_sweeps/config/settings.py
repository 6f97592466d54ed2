"""TODO: rlvr_sweeps.config.settings."""

import re
from collections.abc import Iterable

from omegaconf import DictConfig, OmegaConf

from rlvr_sweeps.config.schema import Resolved, schema_defaults
from rlvr_sweeps.files import Row
from rlvr_sweeps.grading.extraction import Policy

METHOD_DIALS = ("rank", "alpha", "dropout")


def dials_read(cfg: DictConfig) -> set[str]:
    """Which of rank, α and dropout the method's file refers to. `cfg` is composed but not resolved."""
    text = str(OmegaConf.to_container(cfg.peft, resolve=False))
    dials = {dial for dial in METHOD_DIALS if re.search(rf"\$\{{(\w+:)?{dial}[,}}]", text)}
    return dials | {"rank"} if "alpha" in dials else dials  # alpha is derived from rank


def accumulation(cfg: Resolved) -> int:
    """Forward passes per optimizer step and process: batch_size / (per-device batch × processes), exact."""
    together = cfg["training"]["per_device_batch_size"] * cfg["distributed"]["processes"]
    return int(cfg["batch_size"] // together)


HELD_OUT = "heldout"  # the benchmark of training prompts that were held out: no exam, no part of the overall average


def is_trained(cfg: Resolved) -> bool:
    """False for peft=none, the Base row."""
    return bool(cfg["peft"]["trains"] != "nothing")


def exams(benchmarks: Iterable[str]) -> list[str]:
    """The benchmarks that the overall average is over."""
    return [name for name in benchmarks if name != HELD_OUT]


def grading_of(cfg: Resolved) -> Policy:
    """The grading policy; a run from before there was a choice has the default."""
    policy: Policy = cfg.get("grading", schema_defaults()["grading"])
    return policy


def analysis_of(cfg: Resolved) -> str:
    """When the update's spectra are taken; a run from before there was a choice asks for none."""
    return str(cfg.get("analysis", schema_defaults()["analysis"]))


def training_of(cfg: Resolved, setting: str) -> str:
    """How a run trains; a configuration without the setting, of an older version, goes on by the default."""
    return str(cfg["training"].get(setting, schema_defaults()[f"training.{setting}"]))


# TRL's losses that are a mean over a pass's completions, and those that divide by the step's tokens. What means over a pass's
# tokens (bnpo, the entropy bonus), or takes a quantile of them, depends on how a step is cut.
OVER_COMPLETIONS = ("grpo", "dr_grpo", "sapo", "luspo")
OVER_TOKENS = ("dapo", "cispo", "vespo")


def by_length(cfg: Resolved) -> bool:
    """Whether a run's steps are cut by length: asked for, one update per rollout, an objective that does not mind the cut."""
    trl = cfg["training"]["trl"] | cfg["algo"]["trl"]
    bonus = trl.get("entropy_coef") or trl.get("use_adaptive_entropy") or trl.get("top_entropy_quantile", 1.0) < 1
    known = trl["loss_type"] in OVER_COMPLETIONS + OVER_TOKENS and trl.get("num_iterations", 1) == 1 and not bonus
    return training_of(cfg, "micro_batches") == "by_length" and known


def budget(cfg: Resolved) -> int:
    """Positions in a forward pass: what `per_device_batch_size` completions of full length take."""
    return int(cfg["training"]["per_device_batch_size"] * (cfg["data"]["max_prompt_tokens"] + cfg["rollout"]["max_tokens"]))


def axes(cfg: Resolved) -> Row:
    """The dials this run read; None where its method has no such dial."""
    if not is_trained(cfg):
        return dict.fromkeys(("rank", "alpha", "dropout", "lr", "batch_size", "steps", "seed"))
    config = cfg["peft"]["config"]
    dropout = next((value for key, value in config.items() if key.endswith("dropout")), None)
    method = {"rank": config.get("r", config.get("init_r")), "alpha": config.get("lora_alpha"), "dropout": dropout}
    return method | {key: cfg[key] for key in ("lr", "batch_size", "steps", "seed")}
