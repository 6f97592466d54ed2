"""Compute the memory of a run on one GPU, part by part, from shapes and settings; refuse runs that do not fit.

docs/planning.md has the equations, conf/hardware.yaml the constants with their sources.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlvr_sweeps.assets.architecture import (
    Architecture,
    activation_kind,
    adapter_parameters,
    architecture,
    base_parameters,
    head_size,
    trained_parameters,
)
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import completions_per_row, largest_pass, sampling_precision
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.planning.hardware import GIB, Gpu, constants, known_gpus

STATE = ("weights", "adapter", "gradients and optimizer", "rest")  # parts held during the whole training
UPDATE = ("logits", "activations")  # parts held during an update
ROLLOUT = ("vLLM's weights", "KV cache", "rollout")  # parts held during rollouts; by vLLM during the whole training
VLLM_SHARE = 0.9  # gpu_memory_utilization where it is not set, to be divided among the runs; vLLM's own default is 0.92
CPU_CACHE_BYTES = 2**29  # of vLLM's KV cache on a CPU, where it is not set
CPU_BATCHED_TOKENS = 16384  # at least, of vLLM on a CPU
SHARES = tuple(round(0.05 * step, 2) for step in range(18, 1, -1))  # values of gpu_memory_utilization to try: 0.9 … 0.1


@dataclass(frozen=True)
class Footprint:
    """Bytes on one GPU by part, in the order of the printed table."""

    parts: dict[str, float]
    alternating: bool  # rollouts and updates do not hold memory at the same time
    sequences: float | None  # sequences of full length that fit vLLM's KV cache; None without vLLM
    sharing: int = 1  # runs on the GPU at once

    @property
    def peak(self) -> float:
        """The largest number of bytes held at once by one run."""
        state, update, rollout = (sum(self.parts.get(name, 0.0) for name in names) for names in (STATE, UPDATE, ROLLOUT))
        return state + (max(update, rollout) if self.alternating else update + rollout)

    def fits(self, gpu: Gpu) -> bool:
        """Return whether all runs on the GPU fit, and whether vLLM's cache holds at least one sequence."""
        return self.peak * self.sharing <= gpu.memory_gib * GIB and (self.sequences is None or self.sequences >= 1)


def key_value_bytes(model: Architecture, bytes_per_number: float) -> float:
    """Return the bytes of one token in the KV cache: keys and values of every layer."""
    return 2 * model["num_hidden_layers"] * model["num_key_value_heads"] * head_size(model) * bytes_per_number


def compute_bytes(cfg: Resolved) -> float:
    """Return the bytes per number in the matrix products of training: 2 under autocast, else 4."""
    return float(constants()["bytes"]["half" if cfg["model"]["autocast_bf16"] else "master"])


def sampling_bytes(cfg: Resolved, stage: str) -> float:
    """Return the bytes of a weight, product, key or value where a stage samples: 4 with `<stage>.weights=float32`, else 2."""
    return float(constants()["bytes"]["master" if sampling_precision(cfg, stage) == "float32" else "half"])


def sequence_tokens(cfg: Resolved) -> int:
    """Return the tokens of a prompt and a completion of full length."""
    return int(cfg["data"]["max_prompt_tokens"] + cfg["rollout"]["max_tokens"])


def footprint(cfg: Resolved, model: Architecture, gpu: Gpu) -> Footprint | None:
    """Return a training run's memory on one GPU with every completion at its limit; None where the shapes are not known."""
    base, added, trained = base_parameters(model), adapter_parameters(cfg["peft"], model), trained_parameters(cfg, model)
    if base is None or added is None or trained is None:
        return None
    known, size = constants(), constants()["bytes"]
    parts = {
        "weights": float(base * size["master"]),
        "adapter": float(sum(added.values()) * size["master"]),
        "gradients and optimizer": optimizer_bytes(cfg, trained),
        "logits": logits_bytes(cfg, model, base == trained),
        "activations": activation_bytes(cfg, model, base, trained),
    }
    held = sum(parts.values())
    alternating, sequences, stays = True, None, 0.0
    sharing = cfg["cluster"].get("runs_per_gpu", 1)
    if cfg["rollout"]["engine"] == "vllm":
        weights, cache = vllm_bytes(base * sampling_bytes(cfg, "rollout"), cfg["rollout"]["vllm"], gpu.memory_gib, sharing)
        sleeps = cfg["rollout"].get("sleep", False)
        stays = known["vllm_rest_gib"] * GIB if sleeps else 0.0  # CUDA graphs and buffers are not released
        parts |= {"vLLM's weights": weights - stays, "KV cache": cache}
        cached = key_value_bytes(model, sampling_bytes(cfg, "rollout")) * sequence_tokens(cfg)  # by one sequence
        alternating, sequences = sleeps, cache / cached
    else:
        rows = cfg["batch_size"] // cfg["distributed"]["processes"]
        parts["KV cache"] = rows * sequence_tokens(cfg) * key_value_bytes(model, sampling_bytes(cfg, "rollout"))
        is_rounded = sampling_precision(cfg, "rollout") == "bfloat16"  # the rounded weights are a copy, too
        merged = base * size["master"] if is_rounded or cfg["peft"]["trains"] != "everything" else 0
        parts["rollout"] = merged + rows * model["vocab_size"] * size["draw"]
        held += parts["KV cache"] + parts["rollout"]
    parts["rest"] = known["context_gib"] * GIB + known["fragmentation"] * held + stays
    return Footprint(parts, alternating, sequences, sharing)


def optimizer_bytes(cfg: Resolved, trained: int) -> float:
    """Return the bytes of gradients and AdamW state on one GPU: complete; sharded (ZeRO-2); or one bucket (with offload)."""
    known, size, processes = constants(), constants()["bytes"], cfg["distributed"]["processes"]
    zero: dict[str, Any] = cfg["distributed"]["deepspeed"].get("zero_optimization", {})
    if zero.get("stage", 0) < 2:
        buckets = size["ddp_bucket"] if processes > 1 else 0
        return float(trained * (size["gradient"] + buckets + size["adamw"]))
    bucket = min(trained, zero.get("reduce_bucket_size", known["zero2_bucket"])) * size["gradient"]
    if zero.get("offload_optimizer", {}).get("device", "none") != "none":
        return float(bucket)
    return float(bucket + trained * (size["gradient"] + size["master"] + size["adamw"]) / processes)


def logits_bytes(cfg: Resolved, model: Architecture, everything: bool) -> float:
    """Return the bytes of TRL's fused head: one tile of logits, hidden states and their gradient, a trained head's gradient."""
    known, size = constants(), constants()["bytes"]
    tokens = cfg["training"]["per_device_batch_size"] * cfg["rollout"]["max_tokens"]
    tile = min(tokens, known["logits"]["tokens"]) * min(model["vocab_size"], known["logits"]["vocabulary"])
    gradient = model["vocab_size"] * model["hidden_size"] * size["gradient"] if everything else 0
    return float(tile * compute_bytes(cfg) + 2 * tokens * model["hidden_size"] * size["master"] + gradient)


def activation_bytes(cfg: Resolved, model: Architecture, base: int, trained: int) -> float:
    """Return the bytes of saved tensors (all layers; with checkpointing the residual stream and one layer) and of a mask."""
    known, size = constants(), constants()["bytes"]
    rows, layers = cfg["training"]["per_device_batch_size"], model["num_hidden_layers"]
    tokens = rows * sequence_tokens(cfg)
    kind = activation_kind(cfg["peft"])
    measured = known["activations"].get(kind, known["activations"]["other"])
    autocast = cfg["model"]["autocast_bf16"]
    width = (model["hidden_size"] + model["intermediate_size"]) * (1 if autocast else known["float32_factor"])
    mask = mask_bytes(cfg, model)
    copies = base * size["half"] if autocast else 0  # autocast's bfloat16 copies of the weights
    if not cfg["training"]["gradient_checkpointing"]:
        return float(tokens * layers * measured["kept"] * width + mask + copies)
    layer = tokens * measured["checkpointed"] * width
    stream = tokens * layers * model["hidden_size"] * size["master"]
    return float(stream + mask + (max(layer, copies) if base == trained else layer))


def mask_bytes(cfg: Resolved, model: Architecture) -> float:
    """Return the bytes of attention masks in the largest pass, and of attention's copy in the precision of products.

    Rows that hold a group have one, rows longer than a sliding window, and all rows in float32; others have none
    (rlvr_sweeps/training/right_padding.py).
    """
    per_row, (completions, length) = completions_per_row(cfg), largest_pass(cfg)
    width = cfg["data"]["max_prompt_tokens"] + per_row * length
    has_window = model.get("use_sliding_window", model["model_type"] == "mistral") and model.get("sliding_window")
    if per_row == 1 and cfg["model"]["autocast_bf16"] and not (has_window and width >= model["sliding_window"]):
        return 0.0
    return float(completions // per_row * width**2 * (constants()["bytes"]["mask"] + compute_bytes(cfg)))


def vllm_bytes(weights: float, settings: Mapping[str, Any], memory_gib: float, sharing: int) -> tuple[float, float]:
    """Return (bytes of vLLM's weights and working memory, bytes that its share of the GPU leaves for the KV cache).

    `weights`: bytes of the weights alone; `settings`: arguments of vllm.LLM; `sharing`: runs on the GPU, which divide
    gpu_memory_utilization among them.
    """
    weights += constants()["vllm_rest_gib"] * GIB
    if cache := settings.get("kv_cache_memory_bytes"):
        return weights, float(cache)
    share = settings.get("gpu_memory_utilization", VLLM_SHARE) / sharing
    return weights, max(0.0, share * memory_gib * GIB - weights)


def shared_engine(
    cfg: Resolved, settings: Mapping[str, Any], memory_gib: float | None, stage: str = "rollout"
) -> dict[str, Any]:  # fmt: skip
    """Return `settings` (arguments of vllm.LLM) for an engine on a GPU of `memory_gib` that several runs share.

    vLLM would measure how much of the GPU is free, while the other runs allocate and release memory. So the size of its KV
    cache is set instead, to what the plan counts. With one run per GPU, `settings` do not change; without a GPU, `cpu_engine`
    changes them. Raises Refused where the size of the model's weights is not known, or where nothing is left for the KV cache.
    """
    if memory_gib is None:
        return cpu_engine(settings)
    sharing, model = cfg["cluster"].get("runs_per_gpu", 1), architecture(cfg)
    if sharing == 1:
        return dict(settings)
    base = base_parameters(model) if model else None
    if base is None:
        raise Refused(
            f"cluster.runs_per_gpu={sharing} with vLLM needs a model whose weights can be counted: Qwen2, Qwen3, Llama or "
            "Mistral. Use cluster.runs_per_gpu=1."
        )
    share = settings.get("gpu_memory_utilization", VLLM_SHARE) / sharing
    _, cache = vllm_bytes(base * sampling_bytes(cfg, stage), settings, memory_gib, sharing)
    if not cache:
        raise Refused(
            f"cluster.runs_per_gpu={sharing} leaves vLLM {share:.2f} of a GPU of {memory_gib:.0f} GiB, which its weights fill. "
            "Use fewer runs per GPU, or raise gpu_memory_utilization."
        )
    return {**settings, "gpu_memory_utilization": share, "kv_cache_memory_bytes": int(cache)}


def cpu_engine(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` (arguments of vllm.LLM) changed so that vLLM's build for CPUs runs with them.

    It has no CUDA graphs, and no operation for chunked prefill, which a batch of enough tokens avoids. Its cache has
    CPU_CACHE_BYTES where `settings` states no size, since a share of the machine's memory would not suit several runs at once.
    """
    batched = max(CPU_BATCHED_TOKENS, settings.get("max_num_batched_tokens", 0))
    cache = {"kv_cache_memory_bytes": CPU_CACHE_BYTES}
    return cache | dict(settings) | {"enforce_eager": True, "max_num_batched_tokens": batched}


def refuse_too_large(cfg: Resolved, model: Architecture, gpu: Gpu) -> None:
    """Raise Refused where a run does not fit its GPU, with the largest part and with settings that fit."""
    memory = footprint(cfg, model, gpu)
    if memory is None or memory.fits(gpu):
        return
    name = f"model={cfg['model']['name']} peft={cfg['peft']['name']}"
    if memory.sequences is not None and memory.sequences < 1:
        share = cfg["rollout"]["vllm"]["gpu_memory_utilization"]
        why = (
            f"rollout.vllm.gpu_memory_utilization={share} of {gpu.memory_gib:.0f} GiB leaves vLLM "
            f"{memory.parts['KV cache'] / GIB:.1f} GiB of KV cache beside its weights, not enough for one sequence of "
            f"{sequence_tokens(cfg):,} tokens."
        )
    else:
        largest = max(memory.parts, key=lambda part: memory.parts[part])
        why = (
            f"it would take {memory.peak / GIB:.0f} GiB of the {gpu.memory_gib:.0f} that one {gpu.product} has; the largest "
            f"part is {largest}, {memory.parts[largest] / GIB:.0f} GiB."
            + (f" cluster.runs_per_gpu={memory.sharing} runs share it." if memory.sharing > 1 else "")
        )
    raise Refused(f"{name} does not fit: {why} {fitting_settings(cfg, model, gpu)}")


def fitting_settings(cfg: Resolved, model: Architecture, gpu: Gpu) -> str:
    """Return a sentence with the nearest settings that fit, as overrides to type."""
    for overrides, smaller in smaller_settings(cfg):
        memory = footprint(smaller, model, gpu)
        if memory and memory.fits(gpu):
            return f"This fits: {overrides}."
    larger = [kind.name for kind in known_gpus().values() if (memory := footprint(cfg, model, kind)) and memory.fits(kind)]
    elsewhere = f" Without changes it fits cluster.gpu={' or '.join(larger)}." if larger else ""
    return f"No per-device batch fits. Use an adapter, distributed=zero2_offload, or a shorter rollout.max_tokens.{elsewhere}"


def smaller_settings(cfg: Resolved) -> Iterator[tuple[str, Resolved]]:
    """Yield (overrides, configuration): smaller per-device batches, for each the nearest shares of the GPU for vLLM first."""
    configured, processes = cfg["training"]["per_device_batch_size"], cfg["distributed"]["processes"]
    vllm = cfg["rollout"]["engine"] == "vllm"
    share = cfg["rollout"]["vllm"].get("gpu_memory_utilization")
    shares: list[float | None] = sorted(SHARES, key=lambda candidate: abs(candidate - share)) if vllm and share else [None]
    for rows in (rows for rows in range(configured, 0, -1) if cfg["batch_size"] % (rows * processes) == 0):
        for candidate in shares:
            smaller = copy.deepcopy(cfg)
            smaller["training"]["per_device_batch_size"] = rows
            overrides = [f"training.per_device_batch_size={rows}"] if rows != configured else []
            if candidate is not None:
                smaller["rollout"]["vllm"]["gpu_memory_utilization"] = candidate
                overrides += [f"rollout.vllm.gpu_memory_utilization={candidate}"] if candidate != share else []
            if overrides:
                yield " ".join(overrides), smaller
