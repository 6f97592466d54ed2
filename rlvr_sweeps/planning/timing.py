"""How long a run takes: seconds per step and per evaluation, from shapes and a GPU's data sheet.

Decoding is bound by reading the weights once per token whatever the number of sequences, and by a fixed time per token:
a few sequences on each of four GPUs take nearly as long as all of them on one. docs/planning.md has the equations.
"""

import copy
import math
from dataclasses import dataclass

from rlvr_sweeps.assets.architecture import Architecture, base_parameters, head_size
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import cuts_by_length, is_trained, training_of
from rlvr_sweeps.planning.hardware import Gpu, constants
from rlvr_sweeps.planning.memory import compute_bytes, footprint, key_value_bytes, sequence_tokens


@dataclass(frozen=True)
class Lengths:
    """What only runs can tell: the mean completion in tokens, and how often a step samples."""

    completion: float
    rounds: float


def assumed_lengths(cfg: Resolved) -> Lengths:
    known = constants()["assumed"]
    rounds = min(known["sampling_rounds"], cfg["algo"]["sampling_rounds"])
    return Lengths(known["completion_share"] * cfg["rollout"]["max_tokens"], rounds)


def tokens_per_step(cfg: Resolved, lengths: Lengths) -> float:
    """Tokens decoded in a step, over all processes."""
    return float(cfg["batch_size"] * lengths.rounds * lengths.completion)


def step_s(cfg: Resolved, model: Architecture, gpu: Gpu, lengths: Lengths) -> float | None:
    """Seconds of one optimizer step; None where the architecture is not known."""
    base = base_parameters(model)
    if base is None:
        return None
    return lengths.rounds * rollout_s(cfg, model, gpu, lengths) + update_s(cfg, model, gpu, lengths)


def rollout_s(cfg: Resolved, model: Architecture, gpu: Gpu, lengths: Lengths) -> float:
    """One round of rollouts: each process decodes its share, until its longest completion ends at the limit."""
    rows, longest = cfg["batch_size"] / cfg["distributed"]["processes"], cfg["rollout"]["max_tokens"]
    prompt = cfg["data"]["max_prompt_tokens"]
    if cfg["rollout"]["engine"] != "vllm":
        overhead = constants()["generate_overhead_s"] * model["num_hidden_layers"]
        # Weights are float32; under autocast each pass reads them, writes them in bfloat16 and reads that.
        weight = 2 * constants()["bytes"]["half"] + constants()["bytes"]["master"]
        return decode_s(model, gpu, rows, longest, longest, prompt, rows, overhead, weight)
    held = footprint(cfg, model, gpu)
    whole = held.parts["KV cache"] / key_value_bytes(model, compute_bytes(cfg)) if held else math.inf
    slots = max(1.0, whole / (prompt + lengths.completion))
    return decode_s(
        model, gpu, rows, lengths.completion, longest, prompt, slots, constants()["decode_overhead_s"],
        compute_bytes(cfg),
    )  # fmt: skip


def decode_s(
    model: Architecture, gpu: Gpu, rows: float, mean: float, longest: float, prompt: float, slots: float, overhead_s: float,
    weight_bytes: float,
) -> float:  # fmt: skip
    """`rows` sequences of `mean` tokens, the longest `longest`, at most `slots` at once; `weight_bytes` read per parameter.

    Passes are what the longest sequence needs, and what those need that wait for a slot. A pass takes the longer of reading the
    weights and of its products; keys and values are read once per token for all that stands before it, on average two thirds of
    the mean (lengths spread evenly up to twice the mean).
    """
    known = constants()["achieved"]
    bandwidth, peak = known["bandwidth"] * gpu.bandwidth_tb_s * 1e12, known["decoding"] * gpu.bf16_tflops * 1e12
    read = matrix_parameters(model)
    passes = longest + max(0.0, rows / slots - 1) * mean
    at_once = rows * mean / passes
    each = overhead_s + max(read * weight_bytes / bandwidth, 2 * read * at_once / peak)
    context = prompt + mean * 2 / 3
    return passes * each + rows * mean * context * key_value_bytes(model, constants()["bytes"]["half"]) / bandwidth


def matrix_parameters(model: Architecture) -> int:
    """Parameters that every token is multiplied by: all but an embedding that is only looked up."""
    looked_up = 0 if model.get("tie_word_embeddings") else model["vocab_size"] * model["hidden_size"]
    return (base_parameters(model) or 0) - looked_up


def update_s(cfg: Resolved, model: Architecture, gpu: Gpu, lengths: Lengths) -> float:
    """Forward and backward over a process's share.

    Products cost 2 operations per parameter forward, 2 backward through the layer and 2 for the gradient of what is trained;
    checkpointing repeats the forward pass, and scoring samples in a pass of their own adds one. Attention is causal: half the
    square. Cut by length, passes hold little padding, and lengths spread evenly up to twice the mean have 4/3 of its square;
    otherwise every completion counts as the longest, to which TRL pads it.
    """
    rows = cfg["batch_size"] / cfg["distributed"]["processes"]
    corrected = cfg["rollout"]["trl"].get("vllm_importance_sampling_correction", False)
    twice = training_of(cfg, "log_probabilities") == "twice"
    passes = update_passes(cfg) + int(cfg["rollout"]["engine"] == "vllm" and corrected and twice)
    mean = square = float(sequence_tokens(cfg))
    square *= square
    if cuts_by_length(cfg):
        mean = cfg["data"]["max_prompt_tokens"] + lengths.completion
        square = min(square, 4 / 3 * mean**2)
    operations = passes * forward_operations(model, rows, mean, square)
    return float(operations / (constants()["achieved"]["training"] * gpu.bf16_tflops * 1e12))


def forward_operations(model: Architecture, rows: float, mean: float, square: float) -> float:
    """Floating-point operations of `rows` sequences going forward once; mean length in tokens, and mean of its square."""
    heads = model["num_hidden_layers"] * model["num_attention_heads"]
    return float(rows * (2 * matrix_parameters(model) * mean + 2 * square * heads * head_size(model)))


def update_passes(cfg: Resolved) -> int:
    """What an update costs, in forward passes: itself, backward through the layers, recomputing, and what is trained."""
    return 2 + bool(cfg["training"]["gradient_checkpointing"]) + (cfg["peft"]["trains"] == "everything")


def evaluation_s(cfg: Resolved, model: Architecture, gpu: Gpu, gpus: int) -> float | None:
    """Seconds of the evaluation through vLLM, all samples at once on each of `gpus`; None where problems are not counted."""
    counts = [source["problems"] for source in cfg["benchmark"].values()]
    if base_parameters(model) is None or any(count is None for count in counts):
        return None
    rows = sum(source["problems"] * source["k"] for source in cfg["benchmark"].values()) / gpus
    longest, known = cfg["evaluation"]["max_tokens"], constants()
    return decode_s(
        model, gpu, rows, known["assumed"]["evaluation_share"] * longest, longest, cfg["data"]["max_prompt_tokens"],
        known["vllm_slots"], known["decode_overhead_s"], known["bytes"]["half"],
    )  # fmt: skip


def on_gpus(cfg: Resolved, count: int) -> Resolved:
    """The same run on another number of GPUs: same batch, same per-device batch, more or less accumulation."""
    other = copy.deepcopy(cfg)
    other["distributed"]["processes"] = count
    return other


def gpu_hours(cfg: Resolved, model: Architecture, gpu: Gpu, seconds_per_step: float | None) -> float | None:
    """Training and evaluation, each on as many GPUs as the run has processes; None where one of them is not known."""
    processes = cfg["distributed"]["processes"]
    evaluation = evaluation_s(cfg, model, gpu, processes)
    if evaluation is None or (is_trained(cfg) and seconds_per_step is None):
        return None
    training = cfg["steps"] * (seconds_per_step or 0.0) if is_trained(cfg) else 0.0
    return (training + evaluation) * processes / cfg["cluster"].get("runs_per_gpu", 1) / 3600
