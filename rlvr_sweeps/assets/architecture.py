"""What a model's layers measure, from its configuration alone: no weights, no torch."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlvr_sweeps.assets.locations import EMBEDDED, locate

Architecture = dict[str, Any]
DECODERS = ("qwen2", "qwen3", "llama", "mistral")  # whose layers are named and shaped alike


def architecture(cfg: Mapping[str, Any]) -> Architecture | None:
    """The model's config.json: as its local directory holds it, or its conf/model file states it; None where neither does."""
    if cfg["model"]["path"].startswith(EMBEDDED):  # also of a run on a world that is no longer here
        return cfg["model"]["architecture"]
    file = Path(locate(cfg["model"]["path"], cfg["model"]["revision"])) / "config.json"
    known: Architecture | None = json.loads(file.read_text()) if file.exists() else cfg["model"]["architecture"] or None
    return known


def linear_shapes(model: Architecture) -> dict[str, tuple[int, int]] | None:
    """(out, in) of each linear layer by the last part of its name; None for an architecture not known here."""
    if model["model_type"] not in DECODERS:
        return None
    hidden, heads, intermediate = model["hidden_size"], model["num_attention_heads"], model["intermediate_size"]
    head = model.get("head_dim") or hidden // heads
    keys = model["num_key_value_heads"] * head
    return {
        "q_proj": (heads * head, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, heads * head),
        "gate_proj": (intermediate, hidden),
        "up_proj": (intermediate, hidden),
        "down_proj": (hidden, intermediate),
        "lm_head": (model["vocab_size"], hidden),
    }


Shape = tuple[int, int]  # (out, in)
Kinds = dict[str, int]  # parameters by the name parts that conf/peft's `trained` lists; "shared": frozen, one for all layers


def base_parameters(model: Architecture) -> int | None:
    """All parameters of the plain model; None for an architecture not known here."""
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
    return int(model.get("head_dim") or model["hidden_size"] // model["num_attention_heads"])


def adapter_parameters(method: Mapping[str, Any], model: Architecture) -> Kinds | None:
    """What the method adds, by kind; None for an architecture or a PEFT type not known here. Nothing for full and none.

    EVA moves ranks between layers when it sees activations: its sum is that of the even start.
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
    if config["peft_type"] not in OF_A_LAYER:
        return None
    adapted = {target: shapes[target] for target in targets if target in shapes}
    total: Counter[str] = Counter()
    for target, shape in adapted.items():
        for kind, count in OF_A_LAYER[config["peft_type"]](config, target, shape).items():
            total[kind] += count * layers
    if config["peft_type"] in SHARED and adapted:
        widest = max(out for out, _ in adapted.values()), max(into for _, into in adapted.values())
        total["shared"] = SHARED[config["peft_type"]](config["r"], *widest)
    return dict(total)


def trained_parameters(cfg: Mapping[str, Any], model: Architecture) -> int | None:
    """How many a run trains; None where it cannot be told from shapes."""
    if cfg["peft"]["trains"] == "everything":
        return base_parameters(model)
    kinds = adapter_parameters(cfg["peft"], model)
    return None if kinds is None else sum(count for kind, count in kinds.items() if kind in cfg["peft"]["trained"])


def lora(config: Mapping[str, Any], _: str, shape: Shape) -> Kinds:
    (out, into), rank = shape, config["r"]
    magnitude = {"lora_magnitude_vector": out} if config.get("use_dora") else {}
    return {"lora_A": rank * into, "lora_B": out * rank} | magnitude


def adalora(config: Mapping[str, Any], _: str, shape: Shape) -> Kinds:
    (out, into), rank = shape, config["init_r"]
    return {"lora_A": rank * into, "lora_B": out * rank, "lora_E": rank, "ranknum": 1}


def ia3(config: Mapping[str, Any], target: str, shape: Shape) -> Kinds:
    return {"ia3_l": shape[1] if target in config["feedforward_modules"] else shape[0]}


def oft(config: Mapping[str, Any], _: str, shape: Shape) -> Kinds:
    block = config["oft_block_size"]
    return {"oft_R": shape[1] // block * (block * (block - 1) // 2)}


def randlora(config: Mapping[str, Any], _: str, shape: Shape) -> Kinds:
    bases = math.ceil(min(shape) / config["r"])
    return {"randlora_lambda": config["r"] * bases, "randlora_gamma": bases * min(shape)}


OF_A_LAYER: dict[str, Callable[[Mapping[str, Any], str, Shape], Kinds]] = {
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
}
SHARED: dict[str, Callable[[int, int, int], int]] = {  # random matrices that all layers share: rank, widest out, widest in
    "VERA": lambda rank, out, into: rank * (out + into),
    "RANDLORA": lambda rank, out, into: rank * min(out, into) + max(out, into) * math.ceil(min(out, into) / rank) * rank,
}


def activation_kind(method: Mapping[str, Any]) -> str:
    """Which of hardware.yaml's rows on activations a method has: what is trained decides what a layer keeps."""
    if method["trains"] != "adapter":
        return "full"
    return "dora" if method["config"].get("use_dora") else str(method["config"]["peft_type"]).lower()
