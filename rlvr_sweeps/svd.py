"""Exact singular triplets of a model's layers, computed once per model and rank and kept in the user's cache."""

import fcntl
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from rlvr_sweeps.assets import cache_dir

Side = Literal["principal", "minor"]


class Triplets(NamedTuple):
    """r singular triplets of W (out × in): u (out, r), s (r,), vh (r, in), float32, s descending."""

    u: Tensor
    s: Tensor
    vh: Tensor


def triplets(weight: Tensor, rank: int, side: Side) -> Triplets:
    """The `rank` largest or smallest singular triplets, by a full SVD in float64 of the faster orientation."""
    wide = weight.shape[0] < weight.shape[1]
    u, s, vh = torch.linalg.svd((weight.T if wide else weight).double(), full_matrices=False)
    part = slice(None, rank) if side == "principal" else slice(-rank, None)
    u, s, vh = u[:, part], s[part], vh[part]
    if wide:
        u, vh = vh.T, u.T
    return Triplets(u.float().contiguous(), s.float().contiguous(), vh.float().contiguous())


def cached_triplets(weights: Mapping[str, Tensor], rank: int, side: Side, model_key: str | None) -> dict[str, Triplets]:
    """Triplets of every named weight; `model_key` names the model's exact weights, None keeps nothing."""
    if model_key is None:
        return {name: triplets(weight, rank, side) for name, weight in weights.items()}
    place = cache_dir() / "svd" / model_key / f"{side}-r{rank}.safetensors"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one computes, the others wait and read
        kept = load_file(place) if place.exists() else {}
        missing = [name for name in weights if f"{name}.s" not in kept]
        for name in tqdm(missing, desc=f"SVD, {side} {rank}", unit="layer", disable=not missing):
            kept |= {f"{name}.{part}": value.cpu() for part, value in triplets(weights[name], rank, side)._asdict().items()}
        if missing:
            write(kept, place)
    return {name: Triplets(*(kept[f"{name}.{part}"] for part in Triplets._fields)) for name in weights}


def write(tensors: dict[str, Tensor], place: Path) -> None:
    temporary = place.with_name(f".{place.name}")
    save_file(tensors, temporary)
    temporary.replace(place)
