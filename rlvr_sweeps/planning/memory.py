"""How much memory a run takes on one GPU, part by part, from shapes and settings; what cannot fit is refused.

docs/planning.md has the equations, conf/hardware.yaml the constants with their sources.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlvr_sweeps.assets.architecture import (
    Architecture,
    activation_kind,
    adapter_parameters,
    base_parameters,
    head_size,
    trained_parameters,
)
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.planning.hardware import GIB, Gpu, constants, known_gpus

STATE = ("weights", "adapter", "gradients and optimizer", "rest")  # there from the first step to the last
UPDATE = ("logits", "activations")
ROLLOUT = ("vLLM's weights", "KV cache", "rollout")
SHARES = tuple(round(0.05 * step, 2) for step in range(18, 1, -1))  # of memory for vLLM, where another one is looked for


@dataclass(frozen=True)
class Footprint:
    """Bytes on one GPU by part, in the order in which they are shown."""

    parts: dict[str, float]
    asleep: bool  # rollouts and updates do not hold memory at the same time
    sequences: float | None  # full-length sequences that vLLM's cache holds; None without vLLM
    sharing: int = 1  # runs that the GPU has at once

    @property
    def peak(self) -> float:
        state, update, rollout = (sum(self.parts.get(name, 0.0) for name in names) for names in (STATE, UPDATE, ROLLOUT))
        return state + (max(update, rollout) if self.asleep else update + rollout)

    def fits(self, gpu: Gpu) -> bool:
        return self.peak * self.sharing <= gpu.memory_gib * GIB and (self.sequences is None or self.sequences >= 1)


def key_value_bytes(model: Architecture, each: float) -> float:
    """Of one token in the KV cache: keys and values of every layer, `each` bytes per number."""
    return 2 * model["num_hidden_layers"] * model["num_key_value_heads"] * head_size(model) * each


def compute_bytes(cfg: Resolved) -> float:
    """Per number in products, and in vLLM altogether."""
    return float(constants()["bytes"]["half" if cfg["model"]["autocast_bf16"] else "master"])


def sequence_tokens(cfg: Resolved) -> int:
    return int(cfg["data"]["max_prompt_tokens"] + cfg["rollout"]["max_tokens"])


def footprint(cfg: Resolved, model: Architecture, gpu: Gpu) -> Footprint | None:
    """A training run's memory on one GPU at its worst, when every completion is as long as allowed; None where unknown."""
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
    asleep, sequences = True, None
    if cfg["rollout"]["engine"] == "vllm":
        own, cache = vllm_bytes(cfg, base, gpu)
        parts |= {"vLLM's weights": own, "KV cache": cache}
        asleep, sequences = False, cache / (key_value_bytes(model, compute_bytes(cfg)) * sequence_tokens(cfg))
    else:
        rows = cfg["batch_size"] // cfg["distributed"]["processes"]
        parts["KV cache"] = rows * sequence_tokens(cfg) * key_value_bytes(model, compute_bytes(cfg))
        merged = 0 if cfg["peft"]["trains"] == "everything" else base * size["master"]
        parts["rollout"] = merged + rows * model["vocab_size"] * size["draw"]
        held += parts["KV cache"] + parts["rollout"]
    parts["rest"] = known["context_gib"] * GIB + known["fragmentation"] * held
    return Footprint(parts, asleep, sequences, cfg["cluster"].get("runs_per_gpu", 1))


def optimizer_bytes(cfg: Resolved, trained: int) -> float:
    """Gradients and AdamW's state on the GPU: whole, or under ZeRO-2 sharded, or offloaded but for a bucket."""
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
    """TRL's fused head: a tile of logits, the hidden states it reads and their gradient; the head's own where it is trained."""
    known, size = constants(), constants()["bytes"]
    tokens = cfg["training"]["per_device_batch_size"] * cfg["rollout"]["max_tokens"]
    tile = min(tokens, known["logits"]["tokens"]) * min(model["vocab_size"], known["logits"]["vocabulary"])
    own = model["vocab_size"] * model["hidden_size"] * size["gradient"] if everything else 0
    return float(tile * compute_bytes(cfg) + 2 * tokens * model["hidden_size"] * size["master"] + own)


def activation_bytes(cfg: Resolved, model: Architecture, base: int, trained: int) -> float:
    """The stream between layers and one layer's tensors with checkpointing, every layer's without; the attention mask."""
    known, size = constants(), constants()["bytes"]
    rows, layers = cfg["training"]["per_device_batch_size"], model["num_hidden_layers"]
    tokens = rows * sequence_tokens(cfg)
    kind = activation_kind(cfg["peft"])
    measured = known["activations"].get(kind, known["activations"]["other"])
    autocast = cfg["model"]["autocast_bf16"]
    width = (model["hidden_size"] + model["intermediate_size"]) * (1 if autocast else known["float32_factor"])
    mask = rows * sequence_tokens(cfg) ** 2 * size["mask"]
    copies = base * size["half"] if autocast else 0  # autocast's own of the weights
    if not cfg["training"]["gradient_checkpointing"]:
        return float(tokens * layers * measured["kept"] * width + mask + copies)
    layer = tokens * measured["checkpointed"] * width
    stream = tokens * layers * model["hidden_size"] * size["master"]
    return float(stream + mask + (max(layer, copies) if base == trained else layer))


def vllm_bytes(cfg: Resolved, base: int, gpu: Gpu) -> tuple[float, float]:
    """vLLM's copy of the weights with what it needs beside them, and what its share of memory leaves for the KV cache."""
    settings = cfg["rollout"]["vllm"]
    own = base * compute_bytes(cfg) + constants()["vllm_rest_gib"] * GIB
    stated = settings.get("kv_cache_memory_bytes")
    return own, float(stated) if stated else max(0.0, settings["gpu_memory_utilization"] * gpu.memory_gib * GIB - own)


def refuse_too_large(cfg: Resolved, model: Architecture, gpu: Gpu) -> None:
    """Raise Refused where a run does not fit its GPU: the largest part, and settings that fit."""
    found = footprint(cfg, model, gpu)
    if found is None or found.fits(gpu):
        return
    name = f"model={cfg['model']['name']} peft={cfg['peft']['name']}"
    if found.sequences is not None and found.sequences < 1:
        share = cfg["rollout"]["vllm"]["gpu_memory_utilization"]
        why = (
            f"rollout.vllm.gpu_memory_utilization={share} of {gpu.memory_gib:.0f} GiB leaves vLLM "
            f"{found.parts['KV cache'] / GIB:.1f} GiB of KV cache beside its weights, not enough for one sequence of "
            f"{sequence_tokens(cfg):,} tokens."
        )
    else:
        largest = max(found.parts, key=lambda part: found.parts[part])
        why = (
            f"it would take {found.peak / GIB:.0f} GiB of the {gpu.memory_gib:.0f} that one {gpu.product} has, "
            f"{found.parts[largest] / GIB:.0f} of them {largest}."
            + (f" cluster.runs_per_gpu={found.sharing} runs share it." if found.sharing > 1 else "")
        )
    raise Refused(f"{name} does not fit: {why} {fitting_settings(cfg, model, gpu)}")


def fitting_settings(cfg: Resolved, model: Architecture, gpu: Gpu) -> str:
    """The nearest settings that fit, in words to type."""
    for words, smaller in smaller_settings(cfg):
        other = footprint(smaller, model, gpu)
        if other and other.fits(gpu):
            return f"This fits: {words}."
    larger = [kind.name for kind in known_gpus().values() if (other := footprint(cfg, model, kind)) and other.fits(kind)]
    elsewhere = f" As it is, it fits {', '.join(larger)} (cluster.gpu=)." if larger else ""
    return f"No per-device batch fits. Use an adapter, distributed=zero2_offload, or a shorter rollout.max_tokens.{elsewhere}"


def smaller_settings(cfg: Resolved) -> Iterator[tuple[str, Resolved]]:
    """Per-device batches from the asked one down; of each, vLLM's shares from the asked one away."""
    asked, processes = cfg["training"]["per_device_batch_size"], cfg["distributed"]["processes"]
    vllm = cfg["rollout"]["engine"] == "vllm"
    share = cfg["rollout"]["vllm"].get("gpu_memory_utilization")
    shares: list[float | None] = sorted(SHARES, key=lambda each: abs(each - share)) if vllm and share else [None]
    for rows in (rows for rows in range(asked, 0, -1) if cfg["batch_size"] % (rows * processes) == 0):
        for other in shares:
            smaller = copy.deepcopy(cfg)
            smaller["training"]["per_device_batch_size"] = rows
            words = [f"training.per_device_batch_size={rows}"] if rows != asked else []
            if other is not None:
                smaller["rollout"]["vllm"]["gpu_memory_utilization"] = other
                words += [f"rollout.vllm.gpu_memory_utilization={other}"] if other != share else []
            if words:
                yield " ".join(words), smaller
