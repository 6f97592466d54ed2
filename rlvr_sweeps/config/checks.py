"""What is refused before anything runs, because it would end in a crash or in silently wrong numbers."""

import math
import re
from collections.abc import Callable, Collection
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlvr_sweeps.assets.architecture import architecture, linear_shapes
from rlvr_sweeps.config.schema import Resolved, leaves
from rlvr_sweeps.config.settings import HELD_OUT, METHOD_DIALS, dials_read, is_trained
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.grading.extraction import POLICIES

CHOICES = {
    "evaluation.engine": ("auto", "vllm", "transformers"),
    "grading": tuple(POLICIES),
    "analysis": ("none", "final", "checkpoints"),
    "training.micro_batches": ("by_length", "equal"),
    "training.log_probabilities": ("once", "twice"),
    "training.worst_case_first": ("gpu", "always", "never"),
}


def refuse_ignored_dials(cfg: DictConfig, given: Collection[str]) -> None:
    """Raise Refused where a dial was given to a method that has no such dial."""
    read = dials_read(cfg)
    for dial in METHOD_DIALS:
        if dial in given and dial not in read:
            takes = ", ".join(sorted(read)) or "none of " + ", ".join(METHOD_DIALS)
            raise Refused(
                f"{dial}={OmegaConf.select(cfg, dial)} was given, but peft={cfg.peft.name} has no {dial} (it takes {takes}). "
                f"Leave {dial} out, or launch peft={cfg.peft.name} by a command of its own without it."
            )


def refuse(cfg: Resolved) -> None:
    """Raise Refused for the first thing in a resolved configuration that cannot work."""
    if cfg["distributed"]["name"].startswith("zero") and cfg["peft"]["config"].get("peft_type") == "ADALORA":
        raise Refused(
            f"distributed={cfg['distributed']['name']} with peft={cfg['peft']['name']}: ZeRO flattens the gradients that the "
            "rank allocator reads, and PEFT's AdaLoRA crashes on it. Use distributed=ddp or single."
        )
    deepspeed, autocast = cfg["distributed"]["deepspeed"], cfg["model"]["autocast_bf16"]
    if deepspeed and deepspeed.get("torch_autocast", {}).get("enabled", False) != autocast:
        raise Refused(
            f"distributed={cfg['distributed']['name']} with model.autocast_bf16={autocast}: under DeepSpeed accelerate "
            "switches autocast off, and DeepSpeed has its own. Set distributed.deepspeed.torch_autocast.enabled to the same."
        )
    for group in ("peft", "rollout", "distributed"):
        if cfg[group].get("unavailable"):
            name = cfg[group].get("name") or cfg[group].get("engine")
            raise Refused(f"{group}={name} is refused: {cfg[group]['unavailable']}.")
    stated = dict(leaves(cfg))
    for key, choices in CHOICES.items():
        if stated[key] not in choices:
            raise Refused(f"{key}={stated[key]} is not possible. Allowed: {', '.join(choices)}.")
    refuse_trained_on(cfg)
    refuse_uneven_resources(cfg)
    refuse_too_long(cfg)
    if not is_trained(cfg):
        return
    if cfg["algo"]["name"] == "none":
        raise Refused(f"algo=none trains nothing, but peft={cfg['peft']['name']} trains. For the Base row use peft=none.")
    refuse_early_stopping(cfg["early_stopping"])
    limits: list[tuple[str, Callable[[Any], bool], str]] = [
        ("rank", lambda value: value >= 1, "a whole number from 1"),
        ("alpha", lambda value: math.isfinite(value) and value > 0, "a number above 0"),
        ("dropout", lambda value: 0 <= value < 1, "from 0 up to, not including, 1"),
        ("lr", lambda value: math.isfinite(value) and value > 0, "a number above 0, such as 1e-5"),
        ("batch_size", lambda value: value >= 1, "a whole number from 1"),
        ("steps", lambda value: value >= 1, "a whole number from 1"),
        ("seed", lambda value: value >= 0, "a whole number from 0"),
    ]
    for dial, allowed, words in limits:
        if not allowed(cfg[dial]):
            raise Refused(f"{dial}={cfg[dial]} is not possible. Allowed: {words}.")
    refuse_uneven_batch(cfg)
    refuse_unfit_sampler(cfg)
    if cfg["peft"]["trains"] == "adapter":
        refuse_unfit_adapter(cfg)
        refuse_wrong_reference(cfg)


def refuse_trained_on(cfg: Resolved) -> None:
    """Raise Refused for held-out prompts that are not those the training leaves out."""
    for name, source in cfg["benchmark"].items():
        held_out, holdout = source.get("held_out", 0), cfg["data"].get("holdout", 0)
        if (name == HELD_OUT) != bool(held_out) or held_out not in (0, holdout):
            raise Refused(
                f"benchmark {name} has held_out={held_out}, and training leaves out data.holdout={holdout}: only {HELD_OUT} "
                "may ask for training prompts, and for exactly those that are held out. Give the number once: data.holdout=100."
            )


def refuse_early_stopping(asked: Resolved) -> None:
    """Rules that could never judge, and a competition without a name."""
    if asked["window"] < 2:
        raise Refused(f"early_stopping.window={asked['window']} has no standard error. Allowed: 2 steps and more.")
    if asked["first_rung"] is None:
        return
    if not re.fullmatch(r"[\w.-]+", asked["study"] or ""):
        raise Refused(
            f"early_stopping=asha needs to know who competes; study={asked['study']!r} is no name. Say "
            "early_stopping.study=NAME, of letters, digits, dots and dashes, the same for all its runs."
        )
    if asked["first_rung"] < asked["window"] or asked["reduction"] < 2:
        raise Refused(
            f"early_stopping.first_rung={asked['first_rung']}, window={asked['window']}, reduction={asked['reduction']}: a "
            "rung judges a whole window, and a reduction below 2 stops nobody. Raise first_rung or reduction."
        )


def refuse_uneven_resources(cfg: Resolved) -> None:
    """Raise Refused where a Slurm job's nodes and GPUs are not those of the run's processes."""
    train, evaluate, sharing = cfg["cluster"]["train"], cfg["cluster"]["evaluate"], cfg["cluster"]["runs_per_gpu"]
    if sharing < 1 or (sharing > 1 and cfg["cluster"]["name"] != "local"):
        raise Refused(
            f"cluster.runs_per_gpu={sharing} with cluster={cfg['cluster']['name']}. Allowed: a whole number from 1; on "
            "Slurm 1, since sharing is the site's there (shards, MIG), asked for by hydra.launcher.additional_parameters."
        )
    if sharing > 1 and (cfg["rollout"]["engine"] == "vllm" or cfg["evaluation"]["engine"] != "transformers"):
        raise Refused(
            f"cluster.runs_per_gpu={sharing} with vLLM, which takes its share of a GPU at its start and fails beside "
            "another that does the same. Use rollout=hf evaluation.engine=transformers, or cluster.runs_per_gpu=1."
        )
    processes, nodes, gpus = cfg["distributed"]["processes"], train["nodes"], train["gpus_per_node"]
    if nodes < 1 or processes % nodes or gpus not in (0, processes // nodes):
        raise Refused(
            f"distributed.processes={processes} do not fit cluster.train.nodes={nodes} with {gpus} GPUs each: one process has "
            "one GPU. Choose processes = nodes × cluster.train.gpus_per_node, or gpus_per_node=0 for processes on CPUs."
        )
    if evaluate["nodes"] != 1:
        raise Refused(f"cluster.evaluate.nodes={evaluate['nodes']}: an evaluation's shards share one node. Give it more GPUs.")


def refuse_too_long(cfg: Resolved) -> None:
    """Raise Refused where prompt and completion exceed the positions that the model was made for."""
    limit = (architecture(cfg) or {}).get("max_position_embeddings")
    for stage in ("rollout", "evaluation") if is_trained(cfg) else ("evaluation",):
        prompt, most = cfg["data"]["max_prompt_tokens"], cfg[stage]["max_tokens"]
        if limit is not None and prompt + most > limit:
            raise Refused(
                f"data.max_prompt_tokens={prompt} and {stage}.max_tokens={most} are {prompt + most:,} tokens, but "
                f"model={cfg['model']['name']} has {limit:,} positions (max_position_embeddings). Lower one of them: they must "
                "fit together."
            )


def refuse_unfit_adapter(cfg: Resolved) -> None:
    """Raise Refused for targets that are not there or not meant, and for a rank no target layer has."""
    name, config = cfg["peft"]["name"], cfg["peft"]["config"]
    targets = config["target_modules"]
    if "lm_head" in targets:
        raise Refused(f"peft={name} targets lm_head: the paper adapts the blocks' linear layers, and merging would untie it.")
    model = architecture(cfg)
    shapes = linear_shapes(model) if model else None
    if shapes is None:
        return  # judged when the model is there
    known = [*shapes, *cfg["model"]["norm_modules"]]
    absent = [target for target in targets if target not in known]
    if absent:
        raise Refused(
            f"peft={name} targets {', '.join(absent)}, but model={cfg['model']['name']} has no such layer. "
            f"It has: {', '.join(known)}."
        )
    rank = config.get("r", config.get("init_r"))
    sides = {target: min(shapes[target]) for target in targets if target in shapes}
    if rank is not None and sides and rank > min(sides.values()):
        narrow = min(sides, key=lambda target: sides[target])
        raise Refused(
            f"rank={rank} exceeds {narrow}, which is {shapes[narrow][0]} × {shapes[narrow][1]}: the largest rank possible for "
            f"these targets is {sides[narrow]}."
        )


def refuse_wrong_reference(cfg: Resolved) -> None:
    """Raise Refused where something would silently measure against, or train, another model than meant."""
    method, config = cfg["peft"], cfg["peft"]["config"]
    adalora = config["peft_type"] == "ADALORA"
    svd_start = method["initialisation"] or str(config.get("init_lora_weights", "")).startswith(("pissa", "olora", "corda"))
    if cfg["training"]["trl"]["beta"] and (svd_start or adalora):
        raise Refused(
            f"training.trl.beta={cfg['training']['trl']['beta']} with peft={method['name']}: the KL term's reference is the "
            "model with its adapter switched off, which for this method is not the base. Use beta=0, as the paper does."
        )
    if adalora and config["target_r"] < 1:
        raise Refused(f"peft={method['name']} halves its rank, so rank={config['init_r']} leaves nothing. Use rank=2 or more.")
    if adalora and config["tinit"] >= config["total_step"] - config["tfinal"]:
        raise Refused(f"peft={method['name']} needs steps between warm-up and final phase; steps={cfg['steps']} has none.")


def refuse_uneven_batch(cfg: Resolved) -> None:
    batch, group = cfg["batch_size"], cfg["rollout"]["group_size"]
    per_device, processes = cfg["training"]["per_device_batch_size"], cfg["distributed"]["processes"]
    for name, value in (("training.per_device_batch_size", per_device), ("distributed.processes", processes)):
        if value < 1:
            raise Refused(f"{name}={value} is not possible. Allowed: a whole number from 1.")
    if group < 2:
        raise Refused(f"rollout.group_size={group}: a group needs at least 2 completions to have an advantage.")
    if batch % group:
        raise Refused(
            f"batch_size={batch} is not a multiple of rollout.group_size={group}: a batch counts completions and holds whole "
            f"groups. The nearest that fit: {batch - batch % group or group} and {batch + group - batch % group}."
        )
    if batch % (group * processes):
        whole = group * processes
        raise Refused(
            f"batch_size={batch} does not give each of {processes} processes whole groups of {group} completions. The nearest "
            f"that fit: {batch - batch % whole or whole} and {batch + whole - batch % whole}; or use fewer processes."
        )
    if batch % (per_device * processes):
        fits = [n for n in range(1, per_device + 1) if batch % (n * processes) == 0]
        mend = f"training.per_device_batch_size={fits[-1]}" if fits else f"a batch_size that is a multiple of {processes}"
        raise Refused(
            f"batch_size={batch} cannot be cut into equal micro-batches of training.per_device_batch_size={per_device} on "
            f"{processes} process{'es' if processes > 1 else ''}. Try {mend}."
        )


# vllm.LLM's arguments that follow from the run, or that would change what is sampled while the run's id stays.
NOT_FOR_VLLM = (
    "model", "tokenizer", "revision", "tokenizer_revision", "dtype", "quantization", "kv_cache_dtype", "max_model_len", "seed",
    "generation_config", "logprobs_mode", "distributed_executor_backend", "enable_lora", "max_lora_rank", "max_loras",
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_sleep_mode",
)  # fmt: skip
# What rollout.trl may say: TRL reads these whatever samples.
OF_ROLLOUTS = (
    "use_vllm", "vllm_mode", "vllm_importance_sampling_correction", "vllm_importance_sampling_mode",
    "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min",
)  # fmt: skip
# GRPOConfig's dials of TRL's own samplers, which are not used here: set, they would change a run's id and nothing else.
UNREAD = (
    "top_k", "min_p", "repetition_penalty", "generation_kwargs", "cache_implementation", "use_transformers_continuous_batching",
    "generation_batch_size",
)  # fmt: skip
LARGEST_ADAPTER = 512  # the rank that vLLM serves at most


def refuse_unfit_sampler(cfg: Resolved) -> None:
    """Raise Refused for a sampler that would not be the policy, or not as it was asked for."""
    refuse_unread_settings(cfg)
    if cfg["rollout"]["engine"] == "vllm":
        refuse_unfit_engine(cfg)


def refuse_unread_settings(cfg: Resolved) -> None:
    """Raise Refused for decoding that TRL would take and these samplers would not."""
    for group in ("rollout", "algo", "training"):
        for key in cfg[group]["trl"]:
            foreign = key not in OF_ROLLOUTS if group == "rollout" else "vllm" in key
            if key in UNREAD or foreign:
                raise Refused(
                    f"{group}.trl.{key} is not read by the samplers here, and would change the run's id all the same. Decoding "
                    f"is rollout.temperature, top_p and max_tokens; rollout.trl takes {', '.join(OF_ROLLOUTS)}."
                )
    if cfg["rollout"]["trl"].get("vllm_mode", "colocate") != "colocate":
        raise Refused(f"rollout.trl.vllm_mode={cfg['rollout']['trl']['vllm_mode']} is not built. Allowed: colocate.")


def refuse_unfit_engine(cfg: Resolved) -> None:
    """Raise Refused for settings of vLLM that are not the user's, and for adapters that it would serve as something else."""
    rollout, method = cfg["rollout"], cfg["peft"]
    if taken := sorted(set(NOT_FOR_VLLM) & rollout["vllm"].keys()):
        raise Refused(
            f"rollout.vllm.{taken[0]}={rollout['vllm'][taken[0]]} is not yours to set: it follows from the run, or would "
            "change what is sampled without changing the run's id. Leave it out."
        )
    if rollout["sync"] not in ("merged", "adapter"):
        raise Refused(f"rollout.sync={rollout['sync']} is not possible. Allowed: merged, adapter.")
    config = method["config"]
    starts_at_zero = not method["initialisation"] and config.get("init_lora_weights", True) is True
    plain_lora = config.get("peft_type") == "LORA" and not config.get("use_dora") and starts_at_zero
    if rollout["sync"] == "adapter" and not plain_lora:
        raise Refused(
            f"rollout.sync=adapter with peft={method['name']}: vLLM adds B·A to the published weights, and that is this "
            "method's policy only for LoRA and its kin that start at zero (lora, rslora, lora_plus, lora_fa). Use "
            "rollout.sync=merged."
        )
    if rollout["sync"] == "adapter" and config["r"] > LARGEST_ADAPTER:
        raise Refused(f"rollout.sync=adapter with rank={config['r']}: vLLM serves at most {LARGEST_ADAPTER}. Use merged.")
