"""Read single settings of a run's configuration, with the defaults for configurations that lack a setting.

Each function takes a resolved configuration (`Resolved`): the values that were launched, or those of a run's config.yaml.
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlvr_sweeps.config.schema import ATTENTION_MODULES, Resolved, schema_defaults
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import Row
from rlvr_sweeps.grading.extraction import Policy
from rlvr_sweeps.grading.rules import Rules
from rlvr_sweeps.paths import conf_dir

METHOD_DIALS = ("rank", "alpha", "dropout", "modules")  # the dials that only some methods have
TRACKERS = ("wandb", "tensorboard", "trackio")
WEIGHTS = ("float32", "bfloat16", "stochastic")  # choices of rollout.weights and evaluation.weights
HELD_OUT = "heldout"  # the benchmark of held-out training prompts; it is not part of the overall average


def site_runs_dir() -> Path:
    """Return the folder of the runs for commands that compose nothing: `runs_dir` of conf/site/default.yaml, else `runs`.

    Raise Refused where that file cannot be read.
    """
    path = conf_dir() / "site" / "default.yaml"
    if not path.exists():
        return Path(schema_defaults()["runs_dir"])
    try:
        return Path(OmegaConf.select(OmegaConf.load(path), "runs_dir", default=schema_defaults()["runs_dir"]))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise Refused(f"{path} cannot be read: {error}. Correct it; conf/site/example.yaml is an example.") from error


def dials_read(cfg: DictConfig) -> set[str]:
    """Return which of rank, α, dropout and modules the method's file refers to. `cfg` is composed but not resolved."""
    text = str(OmegaConf.to_container(cfg.peft, resolve=False))
    dials = {dial for dial in METHOD_DIALS if re.search(rf"\$\{{(\w+:)?{dial}[,}}]", text)}
    return dials | {"rank"} if "alpha" in dials else dials  # alpha is derived from rank


def accumulation(cfg: Resolved) -> int:
    """Return the forward passes per optimizer step and process: batch_size / (per-device batch × processes), exact."""
    parallel = cfg["training"]["per_device_batch_size"] * cfg["distributed"]["processes"]
    return int(cfg["batch_size"] // parallel)


def is_trained(cfg: Resolved) -> bool:
    """Return whether the run trains: False only for peft=none, the Base row."""
    return bool(cfg["peft"]["trains"] != "nothing")


def gpu_count(gpus: int | str) -> int:
    """Return the number of GPUs in `gpus_per_node`: 2 of 2 and of h100:2. Raises Refused for other texts."""
    _, _, count = str(gpus).rpartition(":")
    if not count.isdigit():
        raise Refused(f"gpus_per_node={gpus} is not possible. Allowed: a number, or Slurm's type and a number: h100:2.")
    return int(count)


def trackers_of(cfg: Resolved) -> list[str]:
    """Return the names of the run's trackers: that of `tracking`, then those of `tracking.also`, each once."""
    names = dict.fromkeys((cfg["tracking"]["name"], *cfg["tracking"].get("also", ())))
    return [name for name in names if name != "none"]


def rank_of(cfg: Resolved) -> int | None:
    """Return the rank in the method's PEFT configuration (AdaLoRA: its initial rank); None for a method without one."""
    config = cfg["peft"]["config"]
    rank: int | None = config.get("r", config.get("init_r"))
    return rank


def modules_of(cfg: Resolved) -> str | None:
    """Return which linear modules the adapter targets: all, attention or mlp; None for a method with a choice of its own."""
    targets = set(cfg["peft"]["config"].get("target_modules", ()))
    linear = set(cfg["model"]["linear_modules"])
    attention = linear & set(cfg["model"].get("attention_modules", ATTENTION_MODULES))
    choices = {"all": linear, "attention": attention, "mlp": linear - attention}
    return next((name for name, modules in choices.items() if targets and targets == modules), None)


def averaged_benchmarks(benchmarks: Iterable[str]) -> list[str]:
    """Return the benchmarks that enter the overall average: all but the held-out training prompts."""
    return [name for name in benchmarks if name != HELD_OUT]


def grading_of(cfg: Resolved) -> Policy:
    """Return the grading policy; the schema's default where the stored configuration has no such key."""
    policy: Policy = cfg.get("grading", schema_defaults()["grading"])
    return policy


def rules_of(cfg: Resolved) -> Rules:
    """Return the rules on which graders differ; the defaults where the stored configuration has no such keys."""
    return Rules(**cfg.get("answers", {}))


def signal_check_of(cfg: Resolved) -> str:
    """Return `signal_check`; the schema's default where the stored configuration has no such key."""
    return str(cfg.get("signal_check", schema_defaults()["signal_check"]))


def analysis_of(cfg: Resolved) -> str:
    """Return when the update's spectra are computed; `none` where the stored configuration has no such key."""
    return str(cfg.get("analysis", schema_defaults()["analysis"]))


def model_precision(cfg: Resolved) -> str:
    """Return the precision of the model's products, `bfloat16` or `float32`."""
    return "bfloat16" if cfg["model"]["autocast_bf16"] else "float32"


def sampling_weights(cfg: Resolved, stage: str) -> str:
    """Return `<stage>.weights`, one of WEIGHTS; the model's precision where the stored configuration has no such key.

    `stage` is `rollout` or `evaluation`.
    """
    return str(cfg[stage].get("weights") or model_precision(cfg))


def sampling_precision(cfg: Resolved, stage: str) -> str:
    """Return the precision of weights, products and KV cache where a stage samples: `bfloat16` or `float32`."""
    return "float32" if sampling_weights(cfg, stage) == "float32" else "bfloat16"


def training_of(cfg: Resolved, setting: str) -> str:
    """Return `training.<setting>`; the schema's default where the stored configuration has no such key."""
    return str(cfg["training"].get(setting, schema_defaults()[f"training.{setting}"]))


def samples_at_once(cfg: Resolved) -> bool:
    """Return whether a step samples in one call of vLLM; False where the stored configuration is older than this setting."""
    return bool(cfg["rollout"]["engine"] == "vllm" and cfg["rollout"].get("continuous", False))


def steps_per_call(cfg: Resolved) -> int:
    """Return the number of steps whose groups one call of vLLM samples: two with rollout.lag=1, else one."""
    return 1 + int(cfg["rollout"].get("lag", 0))


ROUNDS_AT_ONCE = 2  # where a call samples several rounds; more slow the completions that are needed: bench/sampling_rounds.py


def sampler_slots(cfg: Resolved) -> int:
    """Return the number of completions that vLLM decodes at the same time in each process: its `max_num_seqs`."""
    one_round = cfg["batch_size"] // cfg["distributed"]["processes"] * steps_per_call(cfg)
    derived = one_round * (ROUNDS_AT_ONCE if samples_at_once(cfg) and cfg["algo"]["sampling_rounds"] > 1 else 1)
    return int(cfg["rollout"]["vllm"].get("max_num_seqs") or derived)


# TRL's losses that are a mean over the completions of a pass, and those that divide by the tokens of the step. A mean over the
# tokens of one pass (bnpo, the entropy bonus), or a quantile of them, would depend on how the step is cut into passes.
LOSSES_OVER_COMPLETIONS = ("grpo", "dr_grpo", "sapo", "luspo")
LOSSES_OVER_TOKENS = ("dapo", "cispo", "vespo")


def cuts_passes(cfg: Resolved) -> bool:
    """Return whether this package cuts the run's steps into forward passes, by lengths; otherwise TRL cuts them.

    This needs training.micro_batches=by_length or by_prompt, one update per rollout, and a loss that is independent of the cut.
    """
    trl = cfg["training"]["trl"] | cfg["algo"]["trl"]
    entropy_terms = trl.get("entropy_coef") or trl.get("use_adaptive_entropy") or trl.get("top_entropy_quantile", 1.0) < 1
    independent = trl["loss_type"] in LOSSES_OVER_COMPLETIONS + LOSSES_OVER_TOKENS and not entropy_terms
    return training_of(cfg, "micro_batches") != "equal" and independent and trl.get("num_iterations", 1) == 1


def completions_per_row(cfg: Resolved) -> int:
    """Return the number of completions in a row of the update: one, and with training.micro_batches=by_prompt a group.

    Where a pass holds fewer completions than a group has, it is the greatest common divisor of both numbers.
    """
    if not cuts_passes(cfg) or training_of(cfg, "micro_batches") != "by_prompt":
        return 1
    return math.gcd(cfg["rollout"]["group_size"], cfg["training"]["per_device_batch_size"])


def positions_per_pass(cfg: Resolved) -> int:
    """Return the token positions of one forward pass: `per_device_batch_size` prompts and completions of full length."""
    return int(cfg["training"]["per_device_batch_size"] * (cfg["data"]["max_prompt_tokens"] + cfg["rollout"]["max_tokens"]))


def largest_pass(cfg: Resolved) -> tuple[int, int]:
    """Return the completions of the largest forward pass that a step can have, and the tokens of each of them.

    These are `per_device_batch_size` completions of full length. With training.micro_batches=by_prompt a pass can hold more
    completions, since their prompts take less room; they are as many groups as fit, with completions that fill the pass.
    """
    size, prompt, limit = completions_per_row(cfg), cfg["data"]["max_prompt_tokens"], cfg["rollout"]["max_tokens"]
    positions, widest = positions_per_pass(cfg), prompt + size * limit
    rows = min(-(-positions // widest), cfg["batch_size"] // cfg["distributed"]["processes"] // size)
    width = min(widest, positions // rows)
    return rows * size, max(1, (width - prompt) // size)


def dial_values(cfg: Resolved) -> Row:
    """Return the run's dials by name; None where its method has no such dial."""
    if not is_trained(cfg):
        return dict.fromkeys((*METHOD_DIALS, "lr", "batch_size", "steps", "seed"))
    config = cfg["peft"]["config"]
    dropout = next((value for key, value in config.items() if key.endswith("dropout")), None)
    method = {"rank": rank_of(cfg), "alpha": config.get("lora_alpha", config.get("alpha")), "dropout": dropout}
    method |= {"modules": modules_of(cfg)}
    return method | {key: cfg[key] for key in ("lr", "batch_size", "steps", "seed")}
