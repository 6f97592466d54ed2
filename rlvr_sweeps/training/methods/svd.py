"""Singular triplets and singular vectors of a model's layers, computed once per model and stored in the user's cache."""

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
    """Return the `count` largest and the `count` smallest singular triplets, from one full SVD in float64.

    The SVD is of the faster orientation, with at least as many rows as columns.
    """
    wide = weight.shape[0] < weight.shape[1]
    u, s, vh = torch.linalg.svd((weight.T if wide else weight).double(), full_matrices=False)
    if wide:
        u, vh = vh.T, u.T
    full = Triplets(u.float(), s.float(), vh.float())
    return {"principal": cut(full, count, "principal"), "minor": cut(full, count, "minor")}


def cut(full: Triplets, rank: int, side: Side) -> Triplets:
    """Return the first `rank` triplets for `principal`, the last for `minor`."""
    part = slice(None, rank) if side == "principal" else slice(-rank, None)
    pieces = full.u[:, part], full.s[part], full.vh[part]
    return Triplets(*(piece.clone(memory_format=torch.contiguous_format) for piece in pieces))


def cached_triplets(weights: Mapping[str, Tensor], rank: int, side: Side, model_key: str | None) -> dict[str, Triplets]:
    """Return `rank` triplets of every named weight.

    `model_key` identifies the model's exact weights; with None nothing is stored. One SVD per layer serves both sides and all
    ranks up to 64, and each layer is stored as soon as it is computed: 0.6 GB for the model of 1.5B parameters. A larger rank
    needs another SVD, which is stored up to the next power of two.
    """
    if model_key is None:
        return {name: triplets(weight, rank)[side] for name, weight in weights.items()}
    folder = cache_dir() / "svd" / model_key / "triplets"
    folder.mkdir(parents=True, exist_ok=True)
    return {
        name: cached_layer_triplets(folder / f"{name}.safetensors", weight, rank, side)
        for name, weight in tqdm(weights.items(), desc="Singular triplets", unit="layer", delay=1)
    }


def cached_layer_triplets(path: Path, weight: Tensor, rank: int, side: Side) -> Triplets:
    """Return one layer's triplets from the file `path`, which is written where it is missing or holds too few."""
    count = min(max(64, 1 << (rank - 1).bit_length()), *weight.shape)
    with file_lock(path):
        stored = load_file(path) if path.exists() else {}
        if not stored or stored["principal.s"].numel() < count:
            sides = triplets(weight, count)
            stored = {f"{end}.{part}": value.cpu() for end, ends in sides.items() for part, value in ends._asdict().items()}
            write_tensors(stored, path)
    return cut(Triplets(*(stored[f"{side}.{part}"] for part in Triplets._fields)), rank, side)


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Lock `path` between processes: one computes its content, the others wait and read it."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write under a temporary name, then rename, so that a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, temporary)
    temporary.replace(path)


def smaller_side(weight: Tensor) -> Tensor:
    """Return all p = min(out, in) singular vectors of the smaller side of W as columns, s descending: (p, p), float64.

    They are the eigenvectors of W Wᵀ (or Wᵀ W), many times faster than a full SVD. Squaring hides singular values below 1e-8 of
    the largest; those of trained layers are far larger.
    """
    small = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().T
    return torch.linalg.eigh(small @ small.T).eigenvectors.flip(1)


def cached_smaller_side(model_key: str | None) -> SmallerSide:
    """Return a `smaller_side` that stores each layer's vectors in float32; `model_key` as in `cached_triplets`.

    The files take 1.3 GB for the model of 1.5B parameters. The larger side is not stored: it would be as large as the model,
    and is one matrix product away.
    """
    if model_key is None:
        return lambda _, weight: smaller_side(weight)
    folder = cache_dir() / "svd" / model_key / "vectors"
    folder.mkdir(parents=True, exist_ok=True)

    def provide(name: str, weight: Tensor) -> Tensor:
        path = folder / f"{name}.safetensors"
        with file_lock(path):
            if not path.exists():
                write_tensors({"vectors": smaller_side(weight).float().cpu().contiguous()}, path)
        return load_file(path)["vectors"].to(weight.device).double()

    return provide
