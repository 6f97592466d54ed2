"""What a model's layers measure, from its configuration alone: no weights, no torch."""

import json
from pathlib import Path
from typing import Any

from rlvr_sweeps.assets import EMBEDDED, locate
from rlvr_sweeps.identity import Resolved

Architecture = dict[str, Any]
DECODERS = ("qwen2", "qwen3", "llama", "mistral")  # whose layers are named and shaped alike


def architecture(cfg: Resolved) -> Architecture | None:
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
