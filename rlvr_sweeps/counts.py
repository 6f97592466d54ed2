"""Table 4: how many parameters each method trains, counted on the true shapes without a weight (torch's meta device)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlvr_sweeps.adapters import attach
from rlvr_sweeps.compose import Composer
from rlvr_sweeps.identity import Resolved
from rlvr_sweeps.products import reference
from rlvr_sweeps.record import parameter_counts

MODELS = {"r1_qwen_1_5b": "1.5B", "r1_qwen_7b": "7B"}
EXPLAINED = {
    "lora": "1.55 % is six modules, without gate_proj; the text says all linear modules",
    "lora rank=1": "0.0015 % is not rank 1 of any set of modules: all seven give 0.065 %, six 0.048 %",
    "miss": "0.99 % is neither all seven modules nor the released q, v at rank 64 (0.18 %)",
    "vera": "0.0029 % is q and v alone, PEFT's default (variant vera_qv)",
    "ln_tuning": "0.0035 % is neither every norm nor post_attention_layernorm alone (0.0024 %, variant ln_tuning_post)",
}
ROUNDING = 0.005  # a printed share is off by less than half a unit of its last digit, and never by one in two hundred


@dataclass(frozen=True)
class CountRow:
    """A method's trained parameters on each model, and what the paper printed for the 1.5B."""

    row: str
    title: str
    trained: tuple[int, ...]
    shares: tuple[float, ...]  # percent of the base
    printed_percent: float | None
    note: str


def count_rows(composer: Composer, rows: Sequence[str]) -> list[CountRow]:
    """`rows`: methods and their dials, as in "lora rank=1"."""
    printed = printed_shares()
    counted = []
    for row in rows:
        peft, *dials = row.split()
        sizes = []
        for model in MODELS:
            cfg = composer.point([f"model={model}", "rollout=hf", "distributed=single", f"peft={peft}", *dials]).cfg
            sizes.append(parameter_counts(skeleton(cfg)))
        shares = tuple(100 * size["trainable"] / size["base"] for size in sizes)
        said = printed.get(row)
        differs = said is not None and abs(shares[0] - said) > ROUNDING * said
        title = " ".join([cfg["peft"]["title"], *(dial.replace("rank=", "r=") for dial in dials)])
        note = EXPLAINED.get(row, "not explained") if differs else ""
        counted.append(CountRow(row, title, tuple(size["trainable"] for size in sizes), shares, said, note))
    return counted


def skeleton(cfg: Resolved) -> Any:
    """The adapted model on the meta device: names and shapes, no values."""
    architecture = dict(cfg["model"]["architecture"])
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture.pop("model_type"), **architecture))
        return attach(base, cfg["peft"], seed=0)


def printed_shares() -> dict[str, float]:
    """The trainable shares of the paper's Table 4, in percent, by method and dials."""
    wanted = ("table4", "trainable")
    return {one["method"]: float(one["percent"]) for one in reference() if (one["table"], one["metric"]) == wanted}
