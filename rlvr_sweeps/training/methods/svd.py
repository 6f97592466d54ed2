"""Singular triplets and singular vectors of a model's layers, computed once per model and stored in the user's cache.

They are computed in float64 on the device of the weights, the run's own GPU where it has one. What a GPU computes is checked
against the matrix, and computed again on the CPU where its error exceeds TOLERANCE. Devices have files of their own in the
cache, since the signs of singular vectors and the last bits differ between them.
"""

import fcntl
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from rlvr_sweeps.assets.locations import cache_dir

TOLERANCE = 1e-10  # of `svd_error` and `eigen_error`: far below the rounding of the stored float32 values, 6e-8
Side = Literal["principal", "minor"]
Result = TypeVar("Result")
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
    u, s, vh = full_svd((weight.T if wide else weight).double())
    if wide:
        u, vh = vh.T, u.T
    full = Triplets(u.float(), s.float(), vh.float())
    return {"principal": cut(full, count, "principal"), "minor": cut(full, count, "minor")}


def full_svd(matrix: Tensor) -> Triplets:
    """Return all singular triplets of a float64 matrix with at least as many rows as columns, on its device."""

    def on_cpu(matrix: Tensor) -> Triplets:
        return Triplets(*torch.linalg.svd(matrix, full_matrices=False))

    return on_cpu(matrix) if matrix.device.type in ("cpu", "meta") else checked(matrix, svd_by_qr, on_cpu, svd_error)


def svd_by_qr(matrix: Tensor) -> Triplets:
    """Return all singular triplets by the SVD of the square factor R of A = QR: cuSOLVER's SVD takes as long per row."""
    q, r = torch.linalg.qr(matrix)
    u, s, vh = torch.linalg.svd(r)
    return Triplets(q @ u, s, vh)


def svd_error(matrix: Tensor, full: Triplets) -> float:
    """Return the largest of ‖A − U S Vᵀ‖ / ‖A‖, ‖UᵀU − I‖ and ‖VᵀV − I‖; infinite where s does not descend to 0 or above.

    By Weyl's inequality no singular value is farther than about this times ‖A‖ from the exact one (Frobenius norms).
    """
    u, s, vh = full
    if not bool((s.diff() <= 0).all()) or bool((s < 0).any()):
        return float("inf")
    residual = (matrix - (u * s) @ vh).norm() / matrix.norm().clamp_min(torch.finfo(matrix.dtype).tiny)
    return max(float(residual), orthogonality_error(u), orthogonality_error(vh.T))


def eigen_error(matrix: Tensor, pair: tuple[Tensor, Tensor]) -> float:
    """Return the larger of ‖A V − V Λ‖ / ‖A‖ and ‖VᵀV − I‖ for eigenvalues and eigenvectors (Frobenius norms)."""
    values, vectors = pair
    residual = (matrix @ vectors - vectors * values).norm() / matrix.norm().clamp_min(torch.finfo(matrix.dtype).tiny)
    return max(float(residual), orthogonality_error(vectors))


def orthogonality_error(columns: Tensor) -> float:
    """Return ‖QᵀQ − I‖ of a matrix whose columns should be orthonormal (Frobenius norm)."""
    product = columns.T @ columns
    product.diagonal().sub_(1)
    return float(product.norm())


def checked(
    matrix: Tensor,
    compute: Callable[[Tensor], Result],
    on_cpu: Callable[[Tensor], Result],
    error_of: Callable[[Tensor, Result], float],
) -> Result:
    """Return `compute(matrix)`; where its error exceeds TOLERANCE, or it fails, warn and return `on_cpu` of a copy there.

    Raises RuntimeError where the CPU's result exceeds it too, as for a matrix with NaN.
    """
    try:
        result = compute(matrix)
        error = error_of(matrix, result)
        if error <= TOLERANCE:  # false for NaN
            return result
        reason = f"its error is {error:.2g}, above {TOLERANCE:g}"
    except RuntimeError as failure:  # it did not converge, or the device has too little memory
        reason = str(failure).splitlines()[0]
    warnings.warn(
        f"The decomposition of a {matrix.shape[0]} × {matrix.shape[1]} matrix on {matrix.device} is computed again on the CPU: "
        f"{reason}.",
        stacklevel=2,
    )
    host = matrix.cpu()
    result = on_cpu(host)
    error = error_of(host, result)
    if not error <= TOLERANCE:
        raise RuntimeError(f"A {matrix.shape[0]} × {matrix.shape[1]} matrix has no accurate decomposition: error {error:.2g}.")
    return result


def of_device(name: str, device: torch.device) -> str:
    """Return the name of a cache folder for what was computed on a device: `name` for the CPU, else with the device's type."""
    return name if device.type == "cpu" else f"{name}-{device.type}"


def cut(full: Triplets, rank: int, side: Side) -> Triplets:
    """Return the first `rank` triplets for `principal`, the last for `minor`."""
    part = slice(None, rank) if side == "principal" else slice(-rank, None)
    pieces = full.u[:, part], full.s[part], full.vh[part]
    return Triplets(*(piece.clone(memory_format=torch.contiguous_format) for piece in pieces))


def cached_triplets(weights: Mapping[str, Tensor], rank: int, side: Side, model_key: str | None) -> dict[str, Triplets]:
    """Return `rank` triplets of every named weight.

    `model_key` identifies the model's exact weights; with None nothing is stored. The triplets are on the CPU where they are
    stored. One SVD per layer serves both sides and all
    ranks up to 64, and each layer is stored as soon as it is computed: 0.6 GB for the model of 1.5B parameters. A larger rank
    needs another SVD, which is stored up to the next power of two.
    """
    if model_key is None:
        return {name: triplets(weight, rank)[side] for name, weight in weights.items()}

    def path_of(name: str, weight: Tensor) -> Path:
        folder = cache_dir() / "svd" / model_key / of_device("triplets", weight.device)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.safetensors"

    return {
        name: cached_layer_triplets(path_of(name, weight), weight, rank, side)
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
    square = small @ small.T

    def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors

    _, vectors = eigh(square) if square.device.type == "cpu" else checked(square, eigh, eigh, eigen_error)
    return vectors.to(weight.device).flip(1)


def cached_smaller_side(model_key: str | None) -> SmallerSide:
    """Return a `smaller_side` that stores each layer's vectors in float32; `model_key` as in `cached_triplets`.

    The files take 1.3 GB for the model of 1.5B parameters. The larger side is not stored: it would be as large as the model,
    and is one matrix product away.
    """
    if model_key is None:
        return lambda _, weight: smaller_side(weight)

    def provide(name: str, weight: Tensor) -> Tensor:
        folder = cache_dir() / "svd" / model_key / of_device("vectors", weight.device)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.safetensors"
        with file_lock(path):
            if not path.exists():
                write_tensors({"vectors": smaller_side(weight).float().cpu().contiguous()}, path)
        return load_file(path)["vectors"].to(weight.device).double()

    return provide
