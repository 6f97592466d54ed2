"""The position of an update ΔW = W_final − W0 among the singular components of W0: energies by component, effective rank.

With W0 = U S Vᵀ (s descending, p = min(out, in) components), e_j = ‖ΔW v_j‖² and f_j = ‖u_jᵀ ΔW‖² are the definitions of
Figure 3. W0 is the published model for every method, also for those that begin with another split of it (PiSSA, MiLoRA).
"""

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlvr_sweeps.training.methods.svd import SmallerSide
from rlvr_sweeps.training.models import PublishedWeights

POINTS = 256  # the largest number of points of a curve; more components are summed in that many bins


class Energies(NamedTuple):
    """The energies of one layer's ΔW, float64.

    e and f, shape (p,), sum to 1; e_outside and f_outside are the shares of ‖ΔW‖² outside of W0's row and column space.
    """

    e: Tensor
    f: Tensor
    e_outside: float
    f_outside: float
    effective_rank: float


def energies(change: Tensor, origin: Tensor, vectors: Tensor) -> Energies | None:
    """Return one layer's energies, or None where nothing changed.

    `change` is ΔW and `origin` W0, both (out, in); `vectors` are W0's singular vectors of the smaller side, (p, p).
    """
    delta, wide = change.double(), origin.shape[0] <= origin.shape[1]
    total = float(delta.square().sum())
    if not total:
        return None
    across = origin.double() if wide else origin.double().T
    larger = torch.linalg.qr(across.T @ vectors).Q  # v_j = W0ᵀu_j/s_j up to its sign, and orthonormal also where s_j = 0
    u, v = (vectors, larger) if wide else (larger, vectors)
    e, f = (delta @ v).square().sum(0), (u.T @ delta).square().sum(1)
    inside = float(e.sum()), float(f.sum())
    small = delta if wide else delta.T
    values = torch.linalg.eigvalsh(small @ small.T).clamp_min(0).sqrt()
    return Energies(
        e / inside[0], f / inside[1], max(0.0, 1 - inside[0] / total), max(0.0, 1 - inside[1] / total), entropy_rank(values)
    )


def entropy_rank(singular_values: Tensor) -> float:
    """Return exp of the entropy of the normalised singular values (Roy & Vetterli 2007); r for r equal values."""
    shares = singular_values[singular_values > 0] / singular_values.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def spectra(
    final: Iterable[tuple[str, Tensor]], published: PublishedWeights, kinds: Iterable[str], smaller_side: SmallerSide
) -> dict[str, Any]:
    """Return the spectra of each kind of layer in `kinds` with two-dimensional weights; all layers have equal weight.

    Keys: e and f, the energy in each bin of components, largest s first, summing to 1; components, the number per layer;
    layers, the number that moved, of `layers_in_all`; the means over those of effective rank and energy outside. A kind of
    which no layer moved has no curves. `final` yields (name, W_final); `published` maps a tensor's name to W0.
    """
    energies_of = defaultdict(list)
    kinds = set(kinds)
    for name, weight in final:
        kind = name.split(".")[-2] if "." in name else name
        if kind in kinds and weight.ndim == 2 and name in published:
            origin = published[name].to(weight.device)
            change = weight.detach().float() - origin
            energies_of[kind].append(energies(change, origin, smaller_side(name, origin)) if change.any() else None)
    return {kind: mean_over_layers(layers) for kind, layers in sorted(energies_of.items())}


def mean_over_layers(layers: list[Energies | None]) -> dict[str, Any]:
    """Return the row of one kind of layer; None stands for a layer that did not move."""
    moved = [layer for layer in layers if layer is not None]
    if not moved:
        return {"layers": 0, "layers_in_all": len(layers)}
    return {
        "layers": len(moved),
        "layers_in_all": len(layers),
        "components": len(moved[0].e),
        "e": binned(torch.stack([layer.e for layer in moved]).mean(0)),
        "f": binned(torch.stack([layer.f for layer in moved]).mean(0)),
        "e_outside": sum(layer.e_outside for layer in moved) / len(moved),
        "f_outside": sum(layer.f_outside for layer in moved) / len(moved),
        "effective_rank": sum(layer.effective_rank for layer in moved) / len(moved),
    }


def binned(curve: Tensor, points: int = POINTS) -> list[float]:
    """Return sums over n ≤ `points` almost equal bins of the p components; bin i ends at ⌊(i+1)p/n⌋."""
    bins = min(points, len(curve))
    edges = [len(curve) * index // bins for index in range(bins + 1)]

    return [float(f"{float(curve[low:high].sum()):.7g}") for low, high in pairwise(edges)]
