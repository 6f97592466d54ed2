"""The analyse stage: where a trained model's update lies in its base's spectrum, what drifted, how far the sampler was off.

Reads merged/, the published weights, reach.jsonl and metrics.jsonl; writes analysis.json. No sampling and no gradients: a few
eigenvalue problems per layer, on the GPU where there is one.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rlvr_sweeps.assets.locations import weights_folder
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.evaluation.samples import mean
from rlvr_sweeps.files import read_json, read_rows, write_json
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training.methods.reach import PublishedWeights
from rlvr_sweeps.training.methods.spectra import spectra
from rlvr_sweeps.training.methods.svd import cached_smaller_side

SAMPLER = ("sampler_ratio_mean", "sampler_ratio_p99", "sampler_kl")  # of metrics.jsonl, where rollouts come from another engine


def analyse(run: Run, cfg: Resolved) -> None:
    """Write analysis.json: spectra by kind of layer, drift of frozen tensors, mismatch of sampler and trainer."""
    record = read_json(run.record_path)
    published = PublishedWeights(weights_folder(cfg))
    provide = cached_smaller_side(record["model_key"])
    write_json(
        run.analysis_path,
        {
            "spectra": spectra(tensors(PublishedWeights(run.merged_path)), published, cfg["model"]["linear_modules"], provide),
            "drift": drift(read_rows(run.reach_path)),
            "sampler": mismatch(read_rows(run.metrics_path)),
        },
    )


def tensors(weights: PublishedWeights) -> Iterator[tuple[str, Tensor]]:
    """Every tensor, one at a time, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in weights.file_of:
        yield name, weights[name].to(device)


def drift(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """At the last checkpoint: ‖ΔW‖/‖W0‖ by kind of layer, and how many frozen tensors changed in the whole of training."""
    if not rows:
        return {"reach": {}, "frozen_tensors_changed": None}
    return {
        "reach": rows[-1]["reach"],
        "frozen_tensors_changed": max(row["frozen_tensors_changed"] for row in rows),
    }


def mismatch(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Each sampler column's mean over the steps that have it; None where the trainer samples itself."""
    known = {column: [row[column] for row in rows if row.get(column) is not None] for column in SAMPLER}
    return {column: mean(values) if values else None for column, values in known.items()}
