"""Where an update ΔW = W_final − W0 lies among the singular components of W0: energies by component, effective rank.

With W0 = U S Vᵀ (s descending, p = min(out, in) components): e_j = ‖ΔW v_j‖² and f_j = ‖u_jᵀ ΔW‖², the definitions behind
Figure 3. W0 is always the model as published, also where a method starts from another split of it (PiSSA, MiLoRA).
"""

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlvr_sweeps.training.methods.reach import PublishedWeights
from rlvr_sweeps.training.methods.svd import SmallerSide

POINTS = 256  # of a curve at most; a layer with more components is summed in that many bins


class Energies(NamedTuple):
    """One layer's ΔW, float64. e and f sum to 1; what lies outside of W0's row (column) space is in e_outside (f_outside)."""

    e: Tensor
    f: Tensor
    e_outside: float
    f_outside: float
    effective_rank: float


def energies(change: Tensor, origin: Tensor, vectors: Tensor) -> Energies | None:
    """Of one layer: `change` is ΔW, `origin` W0, `vectors` its smaller side. None where nothing changed."""
    delta, wide = change.double(), origin.shape[0] <= origin.shape[1]
    total = float(delta.square().sum())
    if not total:
        return None
    across = origin.double() if wide else origin.double().T
    larger = torch.linalg.qr(across.T @ vectors).Q  # v_j = W0ᵀu_j/s_j up to its sign; orthonormal also where s_j is 0
    u, v = (vectors, larger) if wide else (larger, vectors)
    e, f = (delta @ v).square().sum(0), (u.T @ delta).square().sum(1)
    inside = float(e.sum()), float(f.sum())
    small = delta if wide else delta.T
    values = torch.linalg.eigvalsh(small @ small.T).clamp_min(0).sqrt()
    return Energies(
        e / inside[0], f / inside[1], max(0.0, 1 - inside[0] / total), max(0.0, 1 - inside[1] / total), entropy_rank(values)
    )


def entropy_rank(singular_values: Tensor) -> float:
    """exp of the entropy of the singular values over their sum (Roy & Vetterli 2007): r for r equal ones."""
    shares = singular_values[singular_values > 0] / singular_values.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def spectra(
    final: Iterable[tuple[str, Tensor]], published: PublishedWeights, kinds: Iterable[str], smaller_side: SmallerSide
) -> dict[str, Any]:
    """By kind of layer (`kinds`, those with weights of two dimensions): curves, each layer counting the same.

    e, f: energy in each bin of components, largest s first, summing to 1; components: how many each layer has; layers: how
    many moved, of `layers_in_all`; the means over them of effective rank and of the energy outside. `published` maps a
    tensor's name to W0. A kind of which nothing moved has no curves.
    """
    wanted, found = set(kinds), defaultdict(list)
    for name, weight in final:
        kind = name.split(".")[-2] if "." in name else name
        if kind in wanted and weight.ndim == 2 and name in published:
            origin = published[name].to(weight.device)
            change = weight.detach().float() - origin
            found[kind].append(energies(change, origin, smaller_side(name, origin)) if change.any() else None)
    return {kind: summed(layers) for kind, layers in sorted(found.items())}


def summed(layers: list[Energies | None]) -> dict[str, Any]:
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
    """Sums over at most `points` almost equal stretches of the p components; stretch i of n ends at ⌊(i+1)p/n⌋."""
    bins = min(points, len(curve))
    edges = [len(curve) * place // bins for place in range(bins + 1)]
    return [float(f"{float(curve[low:high].sum()):.7g}") for low, high in pairwise(edges)]
