"""The analyse stage: the update's position in the base's spectrum, drift of frozen tensors, mismatch of sampler and trainer.

It reads merged/, the published weights, reach.jsonl and metrics.jsonl, and writes analysis.json. It needs no sampling and no
gradients, but a few eigenvalue problems per layer, on a GPU where one is visible.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.evaluation.samples import mean
from rlvr_sweeps.files import read_object, read_rows, write_json
from rlvr_sweeps.runs.checksums import verify
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training.methods.spectra import spectra
from rlvr_sweeps.training.methods.svd import cached_smaller_side
from rlvr_sweeps.training.models import PublishedWeights, published_weights

SAMPLER = ("sampler_ratio_mean", "sampler_ratio_p99", "sampler_kl")  # columns of metrics.jsonl, with rollout=vllm


def analyse(run: Run, cfg: Resolved) -> None:
    """Write analysis.json: spectra by kind of layer, drift of frozen tensors, mismatch of sampler and trainer.

    Raises Damaged where a file of merged/ differs from its checksum, or another file that it reads is damaged.
    """
    record = read_object(run.record_path, "model_key") or {}
    verify(run.merged_path)
    published = published_weights(cfg)
    final, kinds = tensors_on_device(PublishedWeights(run.merged_path)), cfg["model"]["linear_modules"]
    analysis = {
        "spectra": spectra(final, published, kinds, cached_smaller_side(record["model_key"])),
        "drift": drift(read_rows(run.reach_path, "reach", "frozen_tensors_changed")),
        "sampler": mismatch(read_rows(run.metrics_path)),
    }
    write_json(run.analysis_path, analysis)


def tensors_on_device(weights: PublishedWeights) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of every tensor, one at a time, on a GPU where one is visible."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in weights.file_of:
        yield name, weights[name].to(device)


def drift(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return ‖ΔW‖/‖W0‖ by kind of layer at the last checkpoint, and the largest number of frozen tensors that changed."""
    if not rows:
        return {"reach": {}, "frozen_tensors_changed": None}
    return {
        "reach": rows[-1]["reach"],
        "frozen_tensors_changed": max(row["frozen_tensors_changed"] for row in rows),
    }


def mismatch(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Return each sampler column's mean over the steps that have it; None where the trainer samples itself."""
    values_of = {column: [row[column] for row in rows if row.get(column) is not None] for column in SAMPLER}
    return {column: mean(values) if values else None for column, values in values_of.items()}
