"""Compute the host memory of a run on one node, part by part; refuse runs whose jobs would be killed for lack of it.

docs/planning.md has the equations, conf/hardware.yaml (`host`) the constants with their sources.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from rlvr_sweeps.assets.architecture import Architecture, base_parameters, linear_shapes, trained_parameters
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.planning.hardware import GIB, constants

HELD, PASSING = ("processes", "verifier", "optimizer"), ("loading", "export")  # of the passing parts, one exists at a time
HostLimit = Callable[[Resolved, str], float | None]  # (cfg, stage) -> GiB that one job may use on a node; None: not known


@dataclass(frozen=True)
class HostFootprint:
    """Bytes of host memory on the node with rank 0 by part, in the order of the printed table."""

    parts: dict[str, float]

    @property
    def peak(self) -> float:
        """The largest number of bytes held at once."""
        return sum(self.parts[name] for name in HELD) + max(self.parts[name] for name in PASSING)


def host_footprint(cfg: Resolved, model: Architecture, stage: str) -> HostFootprint | None:
    """Return the host memory of a stage (train, evaluate) on one node with GPUs; None where the shapes are not known."""
    base, shapes = base_parameters(model), linear_shapes(model)
    trained = trained_parameters(cfg, model) if stage == "train" else 0
    if base is None or shapes is None or trained is None:
        return None
    known, size = constants()["host"], constants()["bytes"]
    nodes = cfg["cluster"]["train"]["nodes"] if stage == "train" else 1
    processes = cfg["distributed"]["processes"] // nodes
    engine = cfg["rollout"]["engine"] if stage == "train" else cfg["evaluation"]["engine"]
    process = known["process_gib"] + (0 if engine in ("hf", "transformers") else known["vllm_gib"])
    tensors = [math.prod(shape) for name, shape in shapes.items() for _ in range(copies(name, model))]
    read = sum(sorted(tensors)[-known["tensors_read_at_once"] :]) * (size["half"] + size["master"])
    return HostFootprint(
        {
            "processes": processes * process * GIB,
            "verifier": processes * known["verifier_gib"] * GIB,
            "optimizer": offloaded_bytes(cfg, trained) * processes,
            "loading": float(processes * read),
            "export": float(base * size["master"]) if stage == "train" else 0.0,
        }
    )


def copies(name: str, model: Architecture) -> int:
    """Return how many tensors of a linear layer's shape the model has; the head has the embedding's shape."""
    if name == "lm_head":
        return 1 if model.get("tie_word_embeddings") else 2
    return int(model["num_hidden_layers"])


def offloaded_bytes(cfg: Resolved, trained: int) -> float:
    """Return the bytes that DeepSpeed keeps on the host for one process: its part of the optimizer, with offload; else 0."""
    offload = cfg["distributed"]["deepspeed"].get("zero_optimization", {}).get("offload_optimizer", {})
    if offload.get("device", "none") == "none":
        return 0.0
    return float(trained * constants()["host"]["offloaded_bytes"] / cfg["distributed"]["processes"])


def refuse_too_little(cfg: Resolved, model: Architecture, limit_of: HostLimit) -> None:
    """Raise Refused where a stage of a run needs more host memory than its job has, with the value that is needed."""
    for stage in ("train", "evaluate") if is_trained(cfg) else ("evaluate",):
        memory, limit = host_footprint(cfg, model, stage), limit_of(cfg, stage)
        if memory is None or limit is None or memory.peak <= limit * GIB:
            continue
        needed, largest = math.ceil(memory.peak / GIB), max(memory.parts, key=lambda part: memory.parts[part])
        name = f"model={cfg['model']['name']} peft={cfg['peft']['name']}"
        part = f"the largest part is {largest}, {memory.parts[largest] / GIB:.0f} GiB"
        if cfg["cluster"]["name"] == "slurm":
            cure = f"Set cluster.{stage}.mem_gb={needed}, or hydra.launcher.mem_gb={needed} for all jobs."
        else:
            cure = "Run fewer at once (hydra.launcher.workers, cluster.runs_per_gpu), or use a machine with more memory."
        if memory.parts["optimizer"]:
            cure += " distributed=ddp keeps the optimizer on the GPUs."
        raise Refused(
            f"{name} does not fit the host memory of its {stage} job: it would take about {needed} GiB on a node with "
            f"{cfg['distributed']['processes']} processes in all, and the job has {limit:.0f}; {part}. {cure}"
        )
