"""Model the duration of a run: seconds per step and per evaluation, from shapes and a GPU's data sheet.

Decoding is bound by reading the weights once per token, whatever the number of sequences, and by a fixed time per token.
A few sequences on each of four GPUs therefore take nearly as long as all of them on one. Equations: docs/planning.md.
"""

import copy
import math
from dataclasses import dataclass

from rlvr_sweeps.assets.architecture import Architecture, base_parameters, head_size
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import (
    cuts_passes,
    is_trained,
    sampler_slots,
    samples_at_once,
    sampling_precision,
    steps_per_call,
    training_of,
)
from rlvr_sweeps.planning.hardware import Gpu, constants, rates
from rlvr_sweeps.planning.memory import footprint, key_value_bytes, sampling_bytes, sequence_tokens, vllm_bytes


@dataclass(frozen=True)
class Lengths:
    """Lengths that only finished runs can tell."""

    completion: float  # mean tokens per completion
    rounds: float  # sampling rounds per step


def assumed_lengths(cfg: Resolved) -> Lengths:
    """Return the lengths that conf/hardware.yaml assumes where no run of the model has finished."""
    known = constants()["assumed"]
    rounds = min(known["sampling_rounds"], cfg["algo"]["sampling_rounds"])
    return Lengths(known["completion_share"] * cfg["rollout"]["max_tokens"], rounds)


def tokens_per_step(cfg: Resolved, lengths: Lengths) -> float:
    """Return the tokens decoded in a step, over all processes."""
    return float(cfg["batch_size"] * lengths.rounds * lengths.completion)


def step_s(cfg: Resolved, model: Architecture, gpu: Gpu, lengths: Lengths) -> float | None:
    """Return the seconds of one optimizer step; None where the architecture is not known."""
    base = base_parameters(model)
    if base is None:
        return None
    if samples_at_once(cfg):
        steps = steps_per_call(cfg)
        sampling = rollout_s(cfg, model, gpu, lengths, lengths.rounds * steps) / steps
    else:
        sampling = lengths.rounds * rollout_s(cfg, model, gpu, lengths)
    return (sampling + update_s(cfg, model, gpu, lengths)) * slowdown(cfg, gpu)


def slowdown(cfg: Resolved, gpu: Gpu) -> float:
    """Return how much longer a step takes because other runs are on the GPU (cluster.runs_per_gpu)."""
    return 1 + rates(gpu)["shared_gpu"] * (cfg["cluster"].get("runs_per_gpu", 1) - 1)


def rollout_s(cfg: Resolved, model: Architecture, gpu: Gpu, lengths: Lengths, rounds: float = 1) -> float:
    """Return the seconds of `rounds` sampling rounds in one call of the engine.

    Each process decodes its share up to the longest completion, at the limit. Sequences that a call begins and does not need
    are left out, since they fill slots that would be free (bench/sampling_rounds.py simulates them).
    """
    rows, longest = rounds * cfg["batch_size"] / cfg["distributed"]["processes"], cfg["rollout"]["max_tokens"]
    prompt = cfg["data"]["max_prompt_tokens"]
    if cfg["rollout"]["engine"] != "vllm":
        overhead = rates(gpu)["generate_overhead_s"] * model["num_hidden_layers"]
        # Under autocast each pass reads the float32 weights, writes them in bfloat16 and reads the copy.
        copies = 2 * constants()["bytes"]["half"] if sampling_precision(cfg, "rollout") == "bfloat16" else 0
        weight = copies + constants()["bytes"]["master"]
        return decode_s(cfg, "rollout", model, gpu, rows, longest, longest, rows, overhead, weight)
    memory, weight = footprint(cfg, model, gpu), sampling_bytes(cfg, "rollout")
    cached = memory.parts["KV cache"] / key_value_bytes(model, weight) if memory else math.inf  # tokens
    slots = max(1.0, min(cached / (prompt + lengths.completion), sampler_slots(cfg)))
    overhead = rates(gpu)["decode_overhead_s"]
    return decode_s(cfg, "rollout", model, gpu, rows, lengths.completion, longest, slots, overhead, weight)


def decode_s(
    cfg: Resolved, stage: str, model: Architecture, gpu: Gpu, rows: float, mean: float, longest: float, slots: float,
    overhead_s: float, weight_bytes: float,
) -> float:  # fmt: skip
    """Return the seconds to decode `rows` sequences of `mean` tokens, the longest of `longest`, at most `slots` at once.

    The number of passes is that of the longest sequence, plus those of sequences that wait for a slot. A pass takes the longer
    of reading the weights (`weight_bytes` per parameter) and computing its products, plus `overhead_s`. For each token the keys
    and values of its context are read: the prompt and on average two thirds of `mean` (lengths spread evenly up to 2 × mean).
    The precision is that of `<stage>.weights`.
    """
    passes = longest + max(0.0, rows / slots - 1) * mean
    at_once = rows * mean / passes
    context = at_once * (cfg["data"]["max_prompt_tokens"] + mean * 2 / 3)
    return passes * pass_s(cfg, stage, model, gpu, at_once, context, overhead_s, weight_bytes)


def pass_s(
    cfg: Resolved, stage: str, model: Architecture, gpu: Gpu, at_once: float, context: float,
    overhead_s: float, weight_bytes: float,
) -> float:  # fmt: skip
    """Return the seconds in which `at_once` sequences get one token each; `context`: tokens before these, over all of them."""
    known = rates(gpu)
    tflops = gpu.bf16_tflops if sampling_precision(cfg, stage) == "bfloat16" else gpu.fp32_tflops
    bandwidth, peak = known["bandwidth"] * gpu.bandwidth_tb_s * 1e12, known["decoding"] * tflops * 1e12
    parameters, read = matrix_parameters(model), context * key_value_bytes(model, sampling_bytes(cfg, stage))
    return overhead_s + max(parameters * weight_bytes / bandwidth, 2 * parameters * at_once / peak) + read / bandwidth


def matrix_parameters(model: Architecture) -> int:
    """Return the number of parameters that every token is multiplied by: all but an untied embedding, which is a lookup."""
    looked_up = 0 if model.get("tie_word_embeddings") else model["vocab_size"] * model["hidden_size"]
    return (base_parameters(model) or 0) - looked_up


def update_s(cfg: Resolved, model: Architecture, gpu: Gpu, lengths: Lengths) -> float:
    """Return the seconds of forward and backward passes over one process's share of the batch.

    Products cost 2 operations per parameter and token forward, 2 backward through the layer and 2 for the gradient of a trained
    weight. Checkpointing repeats the forward pass; scoring the samples in an extra pass adds one. Causal attention costs half
    the square of the length, since rows have no mask. Lengths are spread evenly up to twice the mean. In passes cut by length,
    padding is negligible, and the mean square is 4/3 of the squared mean; else rows are padded to the longest of their pass,
    whose mean is B / (B + 1) of the largest length.
    """
    rows = cfg["batch_size"] / cfg["distributed"]["processes"]
    corrected = cfg["rollout"]["trl"].get("vllm_importance_sampling_correction", False)
    twice = training_of(cfg, "log_probabilities") == "twice"
    passes = update_passes(cfg) + int(cfg["rollout"]["engine"] == "vllm" and corrected and twice)
    limit, prompt = float(sequence_tokens(cfg)), cfg["data"]["max_prompt_tokens"]
    if cuts_passes(cfg):
        mean = prompt + lengths.completion
        square = min(limit**2, 4 / 3 * mean**2)
    else:
        per_pass = cfg["training"]["per_device_batch_size"]
        mean = min(limit, prompt + 2 * lengths.completion * per_pass / (per_pass + 1))
        square = mean**2
    operations = passes * forward_operations(model, rows, mean, square)
    return float(operations / (rates(gpu)["training"] * gpu.bf16_tflops * 1e12))


def forward_operations(model: Architecture, rows: float, mean: float, square: float) -> float:
    """Return the operations of one forward pass of `rows` sequences: `mean` length in tokens, `square` mean squared length."""
    heads = model["num_hidden_layers"] * model["num_attention_heads"]
    return float(rows * (2 * matrix_parameters(model) * mean + 2 * square * heads * head_size(model)))


def update_passes(cfg: Resolved) -> int:
    """Return the cost of an update in forward passes: forward, backward, recomputation, gradients of trained base weights."""
    return 2 + bool(cfg["training"]["gradient_checkpointing"]) + (cfg["peft"]["trains"] == "everything")


def evaluation_s(cfg: Resolved, model: Architecture, gpu: Gpu, gpus: int) -> float | None:
    """Return the seconds of the evaluation by vLLM, its samples split over `gpus`; None where no number of problems is stated.

    Of generated problems some are left out because they repeat others, so that the number is an upper bound.
    """
    sources = cfg["benchmark"].values()
    counts = [source["problems"] or source["size"] or source["test_size"] for source in sources]
    if base_parameters(model) is None or any(count is None for count in counts):
        return None
    rows = sum(count * source["k"] for count, source in zip(counts, sources, strict=True)) / gpus
    longest, prompt, known = cfg["evaluation"]["max_tokens"], cfg["data"]["max_prompt_tokens"], constants()
    mean, weight = known["assumed"]["evaluation_share"] * longest, sampling_bytes(cfg, "evaluation")
    sharing = cfg["cluster"].get("runs_per_gpu", 1)
    _, cache = vllm_bytes((base_parameters(model) or 0) * weight, cfg["evaluation"]["vllm"], gpu.memory_gib, sharing)
    slots = max(1.0, min(gpu.vllm_slots, cache / key_value_bytes(model, weight) / (prompt + mean)))
    overhead = rates(gpu)["decode_overhead_s"]
    return decode_s(cfg, "evaluation", model, gpu, rows, mean, longest, slots, overhead, weight) * slowdown(cfg, gpu)


def on_gpus(cfg: Resolved, count: int) -> Resolved:
    """Return the configuration on another number of GPUs: the same batch and per-device batch, another accumulation."""
    other = copy.deepcopy(cfg)
    other["distributed"]["processes"] = count
    return other


def gpu_hours(cfg: Resolved, model: Architecture, gpu: Gpu, seconds_per_step: float | None) -> float | None:
    """Return the GPU-hours of training and evaluation, each on one GPU per process; None where one of them is not known."""
    processes = cfg["distributed"]["processes"]
    evaluation = evaluation_s(cfg, model, gpu, processes)
    if evaluation is None or (is_trained(cfg) and seconds_per_step is None):
        return None
    training = cfg["steps"] * (seconds_per_step or 0.0) if is_trained(cfg) else 0.0
    return (training + evaluation) * processes / cfg["cluster"].get("runs_per_gpu", 1) / 3600
