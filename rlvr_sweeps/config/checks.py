"""Refuse configurations that would end in a crash or in silently wrong numbers, before anything runs.

`refuse` is the entry point; `refuse_ignored_dials` needs the overrides as well. Checks of memory, files and the machine are
in planning/preflight.py.
"""

import math
import re
from collections.abc import Callable, Collection
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlvr_sweeps.assets.architecture import architecture, linear_shapes
from rlvr_sweeps.config.schema import Resolved, leaves
from rlvr_sweeps.config.settings import (
    HELD_OUT,
    METHOD_DIALS,
    TRACKERS,
    WEIGHTS,
    dials_read,
    gpu_count,
    is_trained,
    rank_of,
    trackers_of,
)
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.grading import rules
from rlvr_sweeps.grading.extraction import POLICIES

CHOICES = {
    "evaluation.engine": ("auto", "vllm", "transformers"),
    "evaluation.weights": WEIGHTS,
    "rollout.weights": WEIGHTS,
    "grading": tuple(POLICIES),
    **{f"answers.{rule}": choices for rule, choices in rules.CHOICES.items()},
    "modules": ("all", "attention", "mlp"),
    "analysis": ("none", "final", "checkpoints"),
    "signal_check": ("stop", "warn", "off"),
    "training.micro_batches": ("by_length", "by_prompt", "equal"),
    "training.log_probabilities": ("once", "twice"),
    "training.worst_case_first": ("gpu", "always", "never"),
    "tracking.name": ("none", *TRACKERS),
    "tracking.mode": ("auto", "online", "offline"),
}


def refuse_ignored_dials(cfg: DictConfig, overridden: Collection[str]) -> None:
    """Raise Refused where an override sets a dial that the method does not have; `overridden`: the keys of the overrides."""
    read = dials_read(cfg)
    for dial in METHOD_DIALS:
        if dial in overridden and dial not in read:
            takes = ", ".join(sorted(read)) or "none of " + ", ".join(METHOD_DIALS)
            raise Refused(
                f"{dial}={OmegaConf.select(cfg, dial)} is set, but peft={cfg.peft.name} has no {dial} (it takes {takes}). "
                f"Leave {dial} out, or launch peft={cfg.peft.name} in a command of its own without it."
            )


def refuse(cfg: Resolved) -> None:
    """Raise Refused for the first setting of a resolved configuration that cannot work."""
    if cfg["budget"] is not None:
        raise Refused(f"budget={cfg['budget']} needs a sweep that claims are about: python launch.py sweep=methods budget=40.")
    if cfg["distributed"]["name"].startswith("zero") and cfg["peft"]["config"].get("peft_type") == "ADALORA":
        raise Refused(
            f"distributed={cfg['distributed']['name']} with peft={cfg['peft']['name']}: ZeRO flattens the gradients that the "
            "rank allocator reads, and PEFT's AdaLoRA crashes on it. Use distributed=ddp or single."
        )
    deepspeed, autocast = cfg["distributed"]["deepspeed"], cfg["model"]["autocast_bf16"]
    if deepspeed and deepspeed.get("torch_autocast", {}).get("enabled", False) != autocast:
        raise Refused(
            f"distributed={cfg['distributed']['name']} with model.autocast_bf16={autocast}: under DeepSpeed, accelerate "
            "switches autocast off and DeepSpeed applies its own. Set distributed.deepspeed.torch_autocast.enabled to the "
            "value of model.autocast_bf16."
        )
    for group in ("peft", "rollout", "distributed"):
        if cfg[group].get("unavailable"):
            name = cfg[group].get("name") or cfg[group].get("engine")
            raise Refused(f"{group}={name} is not available: {cfg[group]['unavailable']}.")
    values = dict(leaves(cfg))
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            raise Refused(f"{key}={values[key]} is not possible. Allowed: {', '.join(choices)}.")
    for name in trackers_of(cfg):
        if name not in TRACKERS:
            raise Refused(f"tracking.also=[{name}] is not possible. Allowed: {', '.join(TRACKERS)}.")
    refuse_wrong_held_out(cfg)
    refuse_wrong_split(cfg)
    refuse_uneven_resources(cfg)
    refuse_too_long(cfg)
    if not is_trained(cfg):
        return
    if cfg["algo"]["name"] == "none":
        raise Refused(
            f"algo=none has no training objective, but peft={cfg['peft']['name']} trains. Choose another algo; for the Base "
            "row use peft=none."
        )
    refuse_early_stopping(cfg["early_stopping"])
    limits: list[tuple[str, Callable[[Any], bool], str]] = [
        ("rank", lambda value: value >= 1, "a whole number from 1"),
        ("alpha", lambda value: math.isfinite(value) and value > 0, "a number above 0"),
        ("dropout", lambda value: 0 <= value < 1, "from 0 up to, not including, 1"),
        ("lr", lambda value: math.isfinite(value) and value > 0, "a number above 0, such as 1e-5"),
        ("batch_size", lambda value: value >= 1, "a whole number from 1"),
        ("steps", lambda value: value >= 1, "a whole number from 1"),
        ("seed", lambda value: value >= 0, "a whole number from 0"),
        ("training.samples_per_step", lambda value: value >= 0, "a whole number from 0"),
        ("cluster.threads", lambda value: value is None or value >= 1, "a whole number from 1; null: the cores that a run has"),
    ]
    for setting, is_allowed, allowed in limits:
        if not is_allowed(values[setting]):
            raise Refused(f"{setting}={values[setting]} is not possible. Allowed: {allowed}.")
    refuse_uneven_batch(cfg)
    refuse_unfit_sampler(cfg)
    if cfg["peft"]["trains"] == "adapter":
        refuse_unfit_adapter(cfg)
        refuse_wrong_reference(cfg)


def refuse_wrong_held_out(cfg: Resolved) -> None:
    """Raise Refused where the benchmark of held-out prompts is not exactly the set that training leaves out."""
    for name, source in cfg["benchmark"].items():
        held_out, holdout = source.get("held_out", 0), cfg["data"].get("holdout", 0)
        if (name == HELD_OUT) != bool(held_out) or held_out not in (0, holdout):
            raise Refused(
                f"benchmark.{name}.held_out={held_out} with data.holdout={holdout}: only the benchmark {HELD_OUT} holds "
                f"training prompts, and exactly those that are held out of it. Set data.holdout alone: "
                f"benchmark.{HELD_OUT}.held_out follows it."
            )


def refuse_wrong_split(cfg: Resolved) -> None:
    """Raise Refused where the test problems of the training file cannot be chosen, and for golds that the grader would need."""
    data = cfg["data"]
    is_generated = str(data["path"]).startswith("reasoning_gym:")
    if data["test_size"] is not None and data["test_size"] < 1 and not is_generated:
        raise Refused(f"data.test_size={data['test_size']} is not possible. Allowed: a whole number from 1; null: no test set.")
    for name, source in cfg["benchmark"].items():
        if source["part"] not in (None, "test"):
            raise Refused(f"benchmark.{name}.part={source['part']} is not possible. Allowed: test, null.")
        if source["part"] == "test" and is_generated:
            raise Refused(
                f"benchmark={name} is the test set of a file, but data.path={data['path']}: use benchmark=reasoning_gym."
            )
        if source["part"] == "test" and source["test_size"] is None:
            raise Refused(f"benchmark={name} needs the number of test problems: data.test_size=100.")
        same = all(source[key] == data[key] for key in ("path", "test_size", "test_seed"))
        if source["part"] == "test" and not same:
            raise Refused(
                f"benchmark.{name} is the test set of another split than the one that training leaves out. Set data.path, "
                f"data.test_size and data.test_seed alone: benchmark={name} follows them."
            )
    if cfg["verifier"]["target"] == "math" or any(part["target"] == "math" for part in cfg["verifier"]["also"].values()):
        for name, source in {"data": data, **{f"benchmark.{name}": each for name, each in cfg["benchmark"].items()}}.items():
            if source["answer"] is None:
                raise Refused(
                    f"{name}.answer=null, but verifier=math compares with gold answers. Name their field: {name}.answer=FIELD."
                )


def refuse_early_stopping(rules: Resolved) -> None:
    """Raise Refused for early-stopping rules that cannot trigger, and for ASHA without a study name."""
    if rules["window"] < 2:
        raise Refused(
            f"early_stopping.window={rules['window']} is not possible: a standard error needs two values. Allowed: a whole "
            "number from 2."
        )
    if rules["first_rung"] is None:
        return
    if not re.fullmatch(r"[\w.-]+", rules["study"] or ""):
        raise Refused(
            f"early_stopping.study={rules['study']!r} is not a name; early_stopping=asha compares the runs of one study. Set "
            "early_stopping.study=NAME (letters, digits, dots, dashes, underscores), the same for all runs that compete."
        )
    if rules["first_rung"] < rules["window"] or rules["reduction"] < 2:
        raise Refused(
            f"early_stopping.first_rung={rules['first_rung']}, window={rules['window']}, reduction={rules['reduction']} is not "
            "possible. Allowed: first_rung from window on, since a rung compares means over one window; reduction from 2 on."
        )


def refuse_uneven_resources(cfg: Resolved) -> None:
    """Raise Refused where a Slurm job's nodes and GPUs are not those of the run's processes."""
    train, evaluate, runs_per_gpu = cfg["cluster"]["train"], cfg["cluster"]["evaluate"], cfg["cluster"]["runs_per_gpu"]
    if runs_per_gpu < 1 or (runs_per_gpu > 1 and cfg["cluster"]["name"] != "local"):
        raise Refused(
            f"cluster.runs_per_gpu={runs_per_gpu} with cluster={cfg['cluster']['name']} is not possible. Allowed: a whole "
            "number from 1 with cluster=local; 1 on Slurm, where the site shares GPUs (shards, MIG): request a share by "
            "hydra.launcher.additional_parameters."
        )
    processes, nodes, gpus = cfg["distributed"]["processes"], train["nodes"], gpu_count(train["gpus_per_node"])
    gpu_count(evaluate["gpus_per_node"])
    if nodes < 1 or processes % nodes or gpus not in (0, processes // nodes):
        raise Refused(
            f"distributed.processes={processes} do not fit cluster.train.nodes={nodes} with {gpus} GPUs each: one process has "
            "one GPU. Choose distributed.processes = cluster.train.nodes × cluster.train.gpus_per_node, or "
            "cluster.train.gpus_per_node=0 for processes on CPUs."
        )
    if evaluate["nodes"] != 1:
        raise Refused(
            f"cluster.evaluate.nodes={evaluate['nodes']} is not possible: an evaluation's shards share one node. Allowed: 1; "
            "for a faster evaluation raise cluster.evaluate.gpus_per_node."
        )


def refuse_too_long(cfg: Resolved) -> None:
    """Raise Refused where prompt and completion together exceed the model's positions."""
    limit = (architecture(cfg) or {}).get("max_position_embeddings")
    for group in ("rollout", "evaluation") if is_trained(cfg) else ("evaluation",):
        prompt, completion = cfg["data"]["max_prompt_tokens"], cfg[group]["max_tokens"]
        if limit is not None and prompt + completion > limit:
            raise Refused(
                f"data.max_prompt_tokens={prompt} and {group}.max_tokens={completion} are {prompt + completion:,} tokens, but "
                f"model={cfg['model']['name']} has {limit:,} positions (max_position_embeddings). Lower one of the two."
            )


def refuse_unfit_adapter(cfg: Resolved) -> None:
    """Raise Refused for target modules that the model lacks, for lm_head, and for a rank larger than a target layer."""
    name, config = cfg["peft"]["name"], cfg["peft"]["config"]
    targets = config["target_modules"]
    if "lm_head" in targets:
        raise Refused(
            f"peft={name} targets lm_head, which is not possible: merging would untie it from the embedding. Allowed: "
            f"{', '.join(cfg['model']['linear_modules'])} (the linear layers of the blocks, as in the paper)."
        )
    if not targets:
        raise Refused(
            f"modules={cfg['modules']} selects none of model.linear_modules={cfg['model']['linear_modules']}. Set "
            "model.attention_modules to the names of those in the attention."
        )
    refuse_unfit_rank(cfg)
    model = architecture(cfg)
    shapes = linear_shapes(model) if model else None
    if shapes is None:
        return  # the shapes are not known before the model is loaded; PEFT checks the targets then
    known = [*shapes, *cfg["model"]["norm_modules"]]
    absent = [target for target in targets if target not in known]
    if absent:
        raise Refused(
            f"peft={name} targets {', '.join(absent)}, but model={cfg['model']['name']} has no such layer. "
            f"It has: {', '.join(known)}."
        )
    rank = rank_of(cfg)
    refuse_unfit_shapes(cfg, {target: shapes[target] for target in targets if target in shapes})
    sides = {target: min(shapes[target]) for target in targets if target in shapes}
    if cfg["peft"]["initialisation"] == "gradients" and rank is not None and 2 * rank > min(sides.values()):
        raise Refused(
            f"rank={rank} with peft={name} is not possible: it takes 2 × rank singular vectors, and a target layer has only "
            f"{min(sides.values())}. Lower rank to {min(sides.values()) // 2}."
        )
    if rank is not None and sides and rank > min(sides.values()):
        narrowest = min(sides, key=lambda target: sides[target])
        rows, columns = shapes[narrowest]
        raise Refused(
            f"rank={rank} exceeds {narrowest}, which is {rows} × {columns}: the largest rank possible for these targets is "
            f"{sides[narrowest]}."
        )


def refuse_unfit_rank(cfg: Resolved) -> None:
    """Raise Refused for a rank that the method cannot divide."""
    name, config, rank = cfg["peft"]["name"], cfg["peft"]["config"], rank_of(cfg)
    part = 2 if config.get("init_lora_weights") == "orthogonal" else config.get("gralora_k", 1)
    if rank is not None and rank % part:
        nearest = f"{rank - rank % part} or {rank + part - rank % part}" if rank > part else str(part)
        raise Refused(
            f"rank={rank} with peft={name} is not possible: the rank must be a multiple of {part}. Set rank={nearest}."
        )


# Settings of PEFT's that must divide sides of every target layer: True where the number of its inputs counts too.
DIVISORS = {"gralora_k": True, "block_size": True, "vector_length": True, "group_size": False}


def refuse_unfit_shapes(cfg: Resolved, shapes: dict[str, tuple[int, int]]) -> None:
    """Raise Refused where a target layer cannot be cut into the method's blocks; `shapes`: (outputs, inputs) by target."""
    name, config = cfg["peft"]["name"], cfg["peft"]["config"]
    for key, both in DIVISORS.items():
        cut = {target: shape if both else shape[:1] for target, shape in shapes.items()} if key in config else {}
        for target, sides in cut.items():
            if any(side % config[key] for side in sides):
                rows, columns = shapes[target]
                raise Refused(
                    f"peft.config.{key}={config[key]} with peft={name} is not possible: it does not divide {target}, which is "
                    f"{rows} × {columns}. The largest number that divides all target layers is "
                    f"{math.gcd(*(side for sides in cut.values() for side in sides))}."
                )
    smallest = min((math.prod(shape) for shape in shapes.values()), default=0)
    if config.get("n_frequency", 0) > smallest:
        raise Refused(
            f"peft.config.n_frequency={config['n_frequency']} with peft={name} exceeds the {smallest:,} entries of the "
            "smallest target layer. Lower it."
        )


def refuse_wrong_reference(cfg: Resolved) -> None:
    """Raise Refused for a KL term whose reference would not be the base model, and for AdaLoRA schedules that do not work."""
    method, config = cfg["peft"], cfg["peft"]["config"]
    adalora = config["peft_type"] == "ADALORA"
    svd_start = method["initialisation"] or str(config.get("init_lora_weights", "")).startswith(("pissa", "olora", "corda"))
    if cfg["training"]["trl"]["beta"] and (svd_start or adalora):
        raise Refused(
            f"training.trl.beta={cfg['training']['trl']['beta']} with peft={method['name']}: the KL term's reference is the "
            "model with its adapter switched off, which for this method is not the base. Use beta=0, as the paper does."
        )
    if adalora and config["target_r"] < 1:
        raise Refused(
            f"peft={method['name']} ends at half of its rank, so rank={config['init_r']} leaves no rank. Use rank=2 or more."
        )
    if adalora and config["tinit"] >= config["total_step"] - config["tfinal"]:
        raise Refused(
            f"peft={method['name']} needs steps between its warm-up and its final phase, to prune in: steps={cfg['steps']} "
            f"with peft.config.tinit={config['tinit']} and peft.config.tfinal={config['tfinal']} leaves none. Raise steps, or "
            "lower the other two."
        )


def refuse_uneven_batch(cfg: Resolved) -> None:
    """Raise Refused where batch_size does not divide into groups, processes and forward passes."""
    batch, group = cfg["batch_size"], cfg["rollout"]["group_size"]
    per_device, processes = cfg["training"]["per_device_batch_size"], cfg["distributed"]["processes"]
    for name, value in (("training.per_device_batch_size", per_device), ("distributed.processes", processes)):
        if value < 1:
            raise Refused(f"{name}={value} is not possible. Allowed: a whole number from 1.")
    if group < 2:
        raise Refused(
            f"rollout.group_size={group} is not possible: a group needs at least 2 completions to have an advantage. Allowed: "
            "a whole number from 2."
        )
    if batch % group:
        raise Refused(
            f"batch_size={batch} is not a multiple of rollout.group_size={group}: batch_size counts completions, and a "
            f"batch holds complete groups. The nearest that fit: {batch - batch % group or group} "
            f"and {batch + group - batch % group}."
        )
    if batch % (group * processes):
        unit = group * processes
        raise Refused(
            f"batch_size={batch} does not give each of {processes} processes complete groups of {group} completions. The "
            f"nearest that fit: {batch - batch % unit or unit} and {batch + unit - batch % unit}; or use fewer processes."
        )
    if batch % (per_device * processes):
        fitting = [n for n in range(1, per_device + 1) if batch % (n * processes) == 0]
        fix = f"training.per_device_batch_size={fitting[-1]}" if fitting else f"a batch_size that is a multiple of {processes}"
        raise Refused(
            f"batch_size={batch} cannot be cut into equal micro-batches of training.per_device_batch_size={per_device} on "
            f"{processes} process{'es' if processes > 1 else ''}. Try {fix}."
        )


# Arguments of vllm.LLM that follow from the run, or that would change what is sampled while the run's id stays the same.
DERIVED_VLLM_KEYS = (
    "model", "tokenizer", "revision", "tokenizer_revision", "dtype", "quantization", "kv_cache_dtype", "max_model_len", "seed",
    "generation_config", "logprobs_mode", "distributed_executor_backend", "enable_lora", "max_lora_rank", "max_loras",
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_sleep_mode",
)  # fmt: skip
# The keys that rollout.trl may hold: TRL reads them whichever sampler draws the completions.
ROLLOUT_TRL_KEYS = (
    "use_vllm", "vllm_mode", "vllm_importance_sampling_correction", "vllm_importance_sampling_mode",
    "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min",
)  # fmt: skip
# Fields of GRPOConfig for TRL's own samplers, which are not used here: setting one would change a run's id and nothing else.
UNUSED_TRL_KEYS = (
    "top_k", "min_p", "repetition_penalty", "generation_kwargs", "cache_implementation", "use_transformers_continuous_batching",
    "generation_batch_size",
)  # fmt: skip
LAGS = (0, 1)
MAX_ADAPTER_RANK = 512  # the largest LoRA rank that vLLM serves


def refuse_unfit_sampler(cfg: Resolved) -> None:
    """Raise Refused for sampler settings that have no effect here, or under which samples would not come from the policy."""
    refuse_unread_settings(cfg)
    if cfg["rollout"]["engine"] == "vllm":
        refuse_unfit_engine(cfg)
    elif cfg["rollout"].get("continuous"):
        raise Refused(
            f"rollout.continuous=true needs vLLM, and rollout.engine is {cfg['rollout']['engine']}, which samples in rounds. "
            "Use rollout=vllm, or rollout.continuous=false."
        )
    elif cfg["rollout"].get("lag"):
        raise Refused(
            f"rollout.lag={cfg['rollout']['lag']} needs rollout=vllm: samples of an earlier policy are corrected by the "
            f"probabilities with which they were drawn, and rollout.engine={cfg['rollout']['engine']} does not return them."
        )
    elif cfg["rollout"].get("sleep"):
        raise Refused("rollout.sleep=true needs rollout=vllm: only vLLM holds GPU memory that it can release.")


def refuse_unfit_lag(cfg: Resolved) -> None:
    """Raise Refused where samples that are one update old would not be corrected, or would not be sampled in one call."""
    lag, updates = cfg["rollout"].get("lag", 0), (cfg["training"]["trl"] | cfg["algo"]["trl"]).get("num_iterations", 1)
    if lag not in LAGS:
        raise Refused(f"rollout.lag={lag} is not possible. Allowed: {', '.join(map(str, LAGS))}.")
    if not lag:
        return
    if not cfg["rollout"].get("continuous"):
        raise Refused(
            "rollout.lag=1 with rollout.continuous=false is not possible: it saves time only where one call of the engine "
            "samples the groups of both steps. Use rollout.continuous=true."
        )
    if not cfg["rollout"]["trl"].get("vllm_importance_sampling_correction"):
        raise Refused(
            "rollout.lag=1 needs the importance correction: every second step trains on samples of the policy before the last "
            "update. Use rollout.trl.vllm_importance_sampling_correction=true."
        )
    if updates != 1:
        raise Refused(
            f"rollout.lag=1 with num_iterations={updates} is not possible: both are ways to update more than once per call of "
            "the sampler. Use one of the two."
        )


def refuse_unread_settings(cfg: Resolved) -> None:
    """Raise Refused for decoding settings that TRL accepts but the samplers of this package do not read."""
    for group in ("rollout", "algo", "training"):
        for key in cfg[group]["trl"]:
            foreign = key not in ROLLOUT_TRL_KEYS if group == "rollout" else "vllm" in key
            if key in UNUSED_TRL_KEYS or foreign:
                raise Refused(
                    f"{group}.trl.{key} is not read by the samplers of this package; it would change the run's id and nothing "
                    f"else. Set decoding by rollout.temperature, rollout.top_p and rollout.max_tokens; rollout.trl takes "
                    f"{', '.join(ROLLOUT_TRL_KEYS)}."
                )
    if cfg["rollout"]["trl"].get("vllm_mode", "colocate") != "colocate":
        raise Refused(f"rollout.trl.vllm_mode={cfg['rollout']['trl']['vllm_mode']} is not supported. Allowed: colocate.")


def refuse_unfit_engine(cfg: Resolved) -> None:
    """Raise Refused for vLLM arguments that are derived from the run, and for adapters that vLLM would serve incorrectly."""
    rollout, method = cfg["rollout"], cfg["peft"]
    if derived := sorted(set(DERIVED_VLLM_KEYS) & rollout["vllm"].keys()):
        raise Refused(
            f"rollout.vllm.{derived[0]}={rollout['vllm'][derived[0]]} cannot be set: it follows from the run, or would "
            "change what is sampled without changing the run's id. Leave it out."
        )
    if rollout["sync"] not in ("merged", "adapter"):
        raise Refused(f"rollout.sync={rollout['sync']} is not possible. Allowed: merged, adapter.")
    if rollout.get("sleep") and rollout["sync"] == "adapter":
        raise Refused(
            "rollout.sleep=true with rollout.sync=adapter is not possible: sleep discards the base's weights, and this sync "
            "sends the adapter alone. Use rollout.sync=merged."
        )
    refuse_unfit_lag(cfg)
    config = method["config"]
    starts_at_zero = not method["initialisation"] and config.get("init_lora_weights", True) is True
    plain_lora = config.get("peft_type") == "LORA" and not config.get("use_dora") and starts_at_zero
    if rollout["sync"] == "adapter" and not plain_lora:
        raise Refused(
            f"rollout.sync=adapter with peft={method['name']} is not possible: vLLM adds B·A to the published weights, which "
            "is the policy only for LoRA variants that start at zero (lora, rslora, lora_plus, lora_fa). Use "
            "rollout.sync=merged."
        )
    if rollout["sync"] == "adapter" and config["r"] > MAX_ADAPTER_RANK:
        raise Refused(
            f"rollout.sync=adapter with rank={config['r']} is not possible: vLLM serves ranks up to {MAX_ADAPTER_RANK}. Use "
            "rollout.sync=merged."
        )
