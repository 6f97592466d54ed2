"""Singular triplets and singular vectors of a model's layers, computed once per model and kept in the user's cache."""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from rlvr_sweeps.assets.locations import cache_dir

Side = Literal["principal", "minor"]
SmallerSide = Callable[[str, Tensor], Tensor]  # (layer's name, W0) -> singular vectors of its smaller side


class Triplets(NamedTuple):
    """r singular triplets of W (out × in): u (out, r), s (r,), vh (r, in), float32, s descending."""

    u: Tensor
    s: Tensor
    vh: Tensor


def triplets(weight: Tensor, count: int) -> dict[Side, Triplets]:
    """The `count` largest and the `count` smallest singular triplets, by one full SVD in float64 of the faster orientation."""
    wide = weight.shape[0] < weight.shape[1]
    u, s, vh = torch.linalg.svd((weight.T if wide else weight).double(), full_matrices=False)
    if wide:
        u, vh = vh.T, u.T
    whole = Triplets(u.float(), s.float(), vh.float())
    return {"principal": cut(whole, count, "principal"), "minor": cut(whole, count, "minor")}


def cut(found: Triplets, rank: int, side: Side) -> Triplets:
    """Of these triplets the first `rank`, or the last."""
    part = slice(None, rank) if side == "principal" else slice(-rank, None)
    pieces = found.u[:, part], found.s[part], found.vh[part]
    return Triplets(*(piece.clone(memory_format=torch.contiguous_format) for piece in pieces))


def cached_triplets(weights: Mapping[str, Tensor], rank: int, side: Side, model_key: str | None) -> dict[str, Triplets]:
    """Triplets of every named weight; `model_key` names the model's exact weights, None keeps nothing.

    One SVD per layer serves both sides and all ranks up to 64. Each layer is kept as soon as it is done: 0.6 GB for the
    model of 1.5B parameters. A larger rank is an SVD anew, kept up to the next power of two.
    """
    if model_key is None:
        return {name: triplets(weight, rank)[side] for name, weight in weights.items()}
    folder = cache_dir() / "svd" / model_key / "triplets"
    folder.mkdir(parents=True, exist_ok=True)
    return {
        name: kept_triplets(folder / f"{name}.safetensors", weight, rank, side)
        for name, weight in tqdm(weights.items(), desc="Singular triplets", unit="layer", delay=1)
    }


def kept_triplets(place: Path, weight: Tensor, rank: int, side: Side) -> Triplets:
    count = min(max(64, 1 << (rank - 1).bit_length()), *weight.shape)
    with alone(place):
        kept = load_file(place) if place.exists() else {}
        if not kept or kept["principal.s"].numel() < count:
            ends = triplets(weight, count)
            kept = {f"{end}.{part}": value.cpu() for end, found in ends.items() for part, value in found._asdict().items()}
            write(kept, place)
    return cut(Triplets(*(kept[f"{side}.{part}"] for part in Triplets._fields)), rank, side)


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """One process computes what is kept at `place`, the others wait and read."""
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write(tensors: dict[str, Tensor], place: Path) -> None:
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    save_file(tensors, temporary)
    temporary.replace(place)


def smaller_side(weight: Tensor) -> Tensor:
    """All p = min(out, in) singular vectors of the smaller side of W as columns, s descending: (p, p), float64.

    Eigenvectors of W Wᵀ (or Wᵀ W), many times faster than a full SVD. Squaring hides singular values under 1e-8 of the
    largest; those of trained layers end far above.
    """
    small = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().T
    return torch.linalg.eigh(small @ small.T).eigenvectors.flip(1)


def cached_smaller_side(model_key: str | None) -> SmallerSide:
    """`smaller_side` by layer, kept in float32; `model_key` as above.

    1.3 GB for the model of 1.5B parameters, once. The larger side would be as large as the model, and is one product away.
    """
    if model_key is None:
        return lambda _, weight: smaller_side(weight)
    folder = cache_dir() / "svd" / model_key / "vectors"
    folder.mkdir(parents=True, exist_ok=True)

    def provide(name: str, weight: Tensor) -> Tensor:
        place = folder / f"{name}.safetensors"
        with alone(place):
            if not place.exists():
                write({"vectors": smaller_side(weight).float().cpu().contiguous()}, place)
        return load_file(place)["vectors"].to(weight.device).double()

    return provide
