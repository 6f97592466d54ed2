"""Compute layer shapes and parameter counts from a model's config.json, without its weights and without torch.

`linear_shapes` and `base_parameters` describe the base model, `adapter_parameters` and `trained_parameters` what a method
adds and trains. tests/assets/test_architecture.py compares all counts with the models that PEFT and transformers build.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlvr_sweeps.assets import gguf
from rlvr_sweeps.assets.locations import EMBEDDED, locate

Architecture = dict[str, Any]
Shape = tuple[int, int]  # (out_features, in_features)
# Parameters by name part, as in conf/peft's `trained`; "buffers": the other tensors that a method adds, in units of four bytes
CountsByKind = dict[str, int]
KNOWN_DECODERS = ("qwen2", "qwen3", "llama", "mistral")  # model types with the same names and shapes of layers


def architecture(cfg: Mapping[str, Any]) -> Architecture | None:
    """Return the model's config.json from its local folder, else from its conf/model file; None where neither has it."""
    path, configured = cfg["model"]["path"], cfg["model"]["architecture"]
    if path.startswith(EMBEDDED):  # from the configuration, so that runs on a removed world can be reported
        return configured
    if gguf.is_gguf(path) and (configured or not gguf.exists(path)):  # runs on a removed file can be reported too
        return configured or None
    file = Path(locate(cfg["model"]["path"], cfg["model"]["revision"])) / "config.json"
    result: Architecture | None = json.loads(file.read_text()) if file.exists() else cfg["model"]["architecture"] or None
    return result


def linear_shapes(model: Architecture) -> dict[str, Shape] | None:
    """Return (out_features, in_features) of each linear layer by the last part of its name; None for an unknown model type."""
    if model["model_type"] not in KNOWN_DECODERS:
        return None
    hidden, intermediate = model["hidden_size"], model["intermediate_size"]
    queries, keys = (model[heads] * head_size(model) for heads in ("num_attention_heads", "num_key_value_heads"))
    return {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (intermediate, hidden),
        "up_proj": (intermediate, hidden),
        "down_proj": (hidden, intermediate),
        "lm_head": (model["vocab_size"], hidden),
    }


def base_parameters(model: Architecture) -> int | None:
    """Return the number of parameters of the base model; None for an unknown model type."""
    shapes = linear_shapes(model)
    if shapes is None:
        return None
    hidden, vocabulary = model["hidden_size"], shapes["lm_head"]
    matrices = sum(math.prod(shape) for name, shape in shapes.items() if name != "lm_head")
    biased: tuple[str, ...] = ("q_proj", "k_proj", "v_proj") if model["model_type"] == "qwen2" else ()
    if model.get("attention_bias"):
        biased = ("q_proj", "k_proj", "v_proj", "o_proj")
    biases = sum(shapes[name][0] for name in biased)
    if model.get("mlp_bias"):
        biases += sum(shapes[name][0] for name in ("gate_proj", "up_proj", "down_proj"))
    head_norms = 2 * head_size(model) if model["model_type"] == "qwen3" else 0
    layer = matrices + biases + head_norms + 2 * hidden
    embeddings = math.prod(vocabulary) * (1 if model.get("tie_word_embeddings") else 2)
    return int(model["num_hidden_layers"] * layer + embeddings + hidden)


def head_size(model: Architecture) -> int:
    """Return the size of one attention head."""
    return int(model.get("head_dim") or model["hidden_size"] // model["num_attention_heads"])


def adapter_parameters(method: Mapping[str, Any], model: Architecture) -> CountsByKind | None:
    """Return the parameters that a method adds, by kind; empty for full and none; None for an unknown model or PEFT type.

    EVA redistributes ranks between layers according to activations; the count is that of equal ranks.
    """
    shapes = linear_shapes(model)
    if shapes is None:
        return None
    if method["trains"] != "adapter":
        return {}
    config = method["config"]
    targets, layers = config["target_modules"], model["num_hidden_layers"]
    if config["peft_type"] == "LN_TUNING":
        per_layer = sum(target in ("input_layernorm", "post_attention_layernorm") for target in targets)
        return {"ln_tuning_layers": model["hidden_size"] * (per_layer * layers + ("norm" in targets))}
    if config["peft_type"] not in LAYER_PARAMETERS:
        return None
    adapted = {target: shapes[target] for target in targets if target in shapes}
    counts: Counter[str] = Counter()
    for target, shape in adapted.items():
        for kind, count in LAYER_PARAMETERS[config["peft_type"]](config, target, shape).items():
            counts[kind] += count * layers
    if config["peft_type"] in MODEL_PARAMETERS and adapted:
        counts.update(MODEL_PARAMETERS[config["peft_type"]](config))
    if config["peft_type"] in SHARED_BUFFERS and adapted:
        widest = max(shape[0] for shape in adapted.values()), max(shape[1] for shape in adapted.values())
        counts["buffers"] += SHARED_BUFFERS[config["peft_type"]](config["r"], *widest)
    return dict(counts)


def trained_parameters(cfg: Mapping[str, Any], model: Architecture) -> int | None:
    """Return the number of parameters that a run trains; None where shapes do not determine it."""
    if cfg["peft"]["trains"] == "everything":
        return base_parameters(model)
    kinds = adapter_parameters(cfg["peft"], model)
    return None if kinds is None else sum(count for kind, count in kinds.items() if kind in cfg["peft"]["trained"])


def activation_kind(method: Mapping[str, Any]) -> str:
    """Return the method's row of activations in conf/hardware.yaml: what a layer stores depends on what is trained."""
    if method["trains"] != "adapter":
        return "full"
    return "dora" if method["config"].get("use_dora") else str(method["config"]["peft_type"]).lower()


# Parameters that a method adds to one linear layer


def lora(config: Mapping[str, Any], _: str, shape: Shape) -> CountsByKind:
    (out_features, in_features), rank = shape, config["r"]
    magnitude = {"lora_magnitude_vector": out_features} if config.get("use_dora") else {}
    return {"lora_A": rank * in_features, "lora_B": out_features * rank} | magnitude


def adalora(config: Mapping[str, Any], _: str, shape: Shape) -> CountsByKind:
    (out_features, in_features), rank = shape, config["init_r"]
    return {"lora_A": rank * in_features, "lora_B": out_features * rank, "lora_E": rank, "ranknum": 1}


def ia3(config: Mapping[str, Any], target: str, shape: Shape) -> CountsByKind:
    return {"ia3_l": shape[1] if target in config["feedforward_modules"] else shape[0]}


def oft(config: Mapping[str, Any], _: str, shape: Shape) -> CountsByKind:
    block = config["oft_block_size"]
    return {"oft_R": shape[1] // block * (block * (block - 1) // 2)}


def randlora(config: Mapping[str, Any], _: str, shape: Shape) -> CountsByKind:
    bases = math.ceil(min(shape) / config["r"])
    return {"randlora_lambda": config["r"] * bases, "randlora_gamma": bases * min(shape)}


def psoft(config: Mapping[str, Any], _: str, shape: Shape) -> CountsByKind:
    rank = config["r"]  # buffers: A, B, and rows and columns (int64) of the skew-symmetric matrix's entries
    return {"psoft_R": rank * (rank - 1) // 2 + 2 * rank, "buffers": rank * sum(shape) + 2 * rank * (rank - 1)}


def delora(config: Mapping[str, Any], _: str, shape: Shape) -> CountsByKind:
    (out_features, in_features), rank = shape, config["r"]
    return {"delora_A": rank * in_features, "delora_B": out_features * rank, "delora_lambda": 1, "buffers": in_features}


def loha(config: Mapping[str, Any], _: str, shape: Shape) -> CountsByKind:
    left, right = shape[0] * config["r"], config["r"] * shape[1]
    return {"hada_w1_a": left, "hada_w1_b": right, "hada_w2_a": left, "hada_w2_b": right}


def vblora(config: Mapping[str, Any], _: str, shape: Shape) -> CountsByKind:
    (out_features, in_features), choices = shape, config["r"] * config["num_vectors"]
    return {
        "vblora_logits_A": in_features // config["vector_length"] * choices,
        "vblora_logits_B": out_features // config["vector_length"] * choices,
    }


def supertuning(config: Mapping[str, Any], _: str, shape: Shape) -> CountsByKind:
    entries = int(math.prod(shape) * (1 - config["sparsity"]))  # rounded as PEFT does; buffers: their positions (int32)
    return {"supertuning_values": entries, "buffers": entries}


def glora(config: Mapping[str, Any], _: str, shape: Shape) -> CountsByKind:
    (out_features, in_features), both = shape, config["r"] * sum(shape)  # buffers: zeros in place of C, D and E
    return {"glora_A": both, "glora_B": both, "buffers": in_features + 2 * out_features}


LAYER_PARAMETERS: dict[str, Callable[[Mapping[str, Any], str, Shape], CountsByKind]] = {
    "LORA": lora,
    "ADALORA": adalora,
    "IA3": ia3,
    "OFT": oft,
    "RANDLORA": randlora,
    "MISS": lambda config, _, shape: {"miss_block": config["r"] * shape[0]},
    "VERA": lambda config, _, shape: {"vera_lambda_b": shape[0], "vera_lambda_d": config["r"]},
    "HRA": lambda config, _, shape: {"hra_u": shape[1] * config["r"]},
    "SHIRA": lambda config, _, shape: {"shira_weight": config["r"] * sum(shape)},
    "TINYLORA": lambda config, *_: {"tinylora_v": config["u"]},
    "HIRA": lambda config, _, shape: {"hira_A": config["r"] * shape[1], "hira_B": shape[0] * config["r"]},
    "PSOFT": psoft,
    "GRALORA": lambda config, _, shape: {"gralora_A": config["r"] * shape[1], "gralora_B": shape[0] * config["r"]},
    "DELORA": delora,
    "UNILORA": lambda config, _, shape: {"buffers": 3 * config["r"] * sum(shape)},  # an int64 index and a factor per entry
    "C3A": lambda config, _, shape: {"c3a_kernel": math.prod(shape) // config["block_size"]},
    "FOURIERFT": lambda config, *_: {"fourierft_spectrum": config["n_frequency"]},
    "WAVEFT": lambda config, *_: {"waveft_spectrum": config["n_frequency"]},
    "LOHA": loha,
    "ROAD": lambda _, __, shape: {"road_theta": shape[0] // 2, "road_alpha": shape[0] // 2},  # variant 1
    "VBLORA": vblora,
    "SUPERTUNING": supertuning,
    "DEFT": lambda config, _, shape: {"deft_P": shape[0] * config["r"], "deft_R": config["r"] * shape[1]},
    "GLORA": glora,
    "PEANUT": lambda config, _, shape: {"peanut_A": shape[0] * config["r"], "peanut_B": shape[0] * config["r"]},
}
# Trained parameters that all layers share
MODEL_PARAMETERS: dict[str, Callable[[Mapping[str, Any]], CountsByKind]] = {
    "UNILORA": lambda config: {"unilora_theta_d": config["theta_d_length"]},
    "VBLORA": lambda config: {"vblora_vector_bank": config["num_vectors"] * config["vector_length"]},
}
# Random matrices that all layers share, from the rank, the largest out_features and the largest in_features
SHARED_BUFFERS: dict[str, Callable[[int, int, int], int]] = {
    "VERA": lambda rank, out, in_: rank * (out + in_),
    "RANDLORA": lambda rank, out, in_: rank * min(out, in_) + max(out, in_) * math.ceil(min(out, in_) / rank) * rank,
}
