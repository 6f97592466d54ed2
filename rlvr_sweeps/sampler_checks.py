"""What is refused of rollouts: a sampler that would not be the policy, and settings that it would not read."""

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.identity import Resolved

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
