"""Test the check on decompositions that a GPU computes: exact ones pass, perturbed ones are computed again on the CPU."""

import warnings

import pytest
import torch

from rlvr_sweeps.training.methods.svd import (
    TOLERANCE,
    Triplets,
    checked,
    eigen_error,
    full_svd,
    of_device,
    smaller_side,
    svd_by_qr,
    svd_error,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def matrix_of(kind, rows=96, columns=40):
    """Return a float64 matrix: random, of low rank, with equal singular values, or zero."""
    random = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    if kind == "low rank":
        return random[:, :5] @ random[:5]
    return {"random": random, "equal values": torch.linalg.qr(random).Q, "zero": torch.zeros_like(random)}[kind]


@pytest.mark.parametrize("kind", ["random", "low rank", "equal values", "zero"])
def test_the_svd_of_a_gpu_passes_the_check_and_equals_lapacks(kind):
    """Run the steps that a GPU runs, on the CPU where there is no GPU."""
    matrix = matrix_of(kind)
    result, expected = svd_by_qr(matrix), full_svd(matrix.cpu())
    assert svd_error(matrix, result) < TOLERANCE / 100 and svd_error(matrix.cpu(), expected) < TOLERANCE / 100
    torch.testing.assert_close(result.s.cpu(), expected.s, atol=1e-12, rtol=1e-12)
    if kind == "random":
        for part in (slice(None, 5), slice(-5, None)):  # B·A of PiSSA and of MiLoRA
            product, other = ((u[:, part] * s[part]) @ vh[part] for u, s, vh in (result, expected))
            torch.testing.assert_close(product.cpu(), other, atol=1e-11, rtol=1e-9)


PERTURBED = {
    "a vector by 1e-8": lambda u, s, vh: (u + 1e-8 * torch.roll(u, 1, 1), s, vh),
    "a value by 1e-8": lambda u, s, vh: (u, s * (1 + 1e-8), vh),
    "two values swapped": lambda u, s, vh: (u, s[[1, 0, *range(2, len(s))]], vh),
    "triplets in another order": lambda u, s, vh: (u.flip(1), s.flip(0), vh.flip(0)),
    "a negative value": lambda u, s, vh: (torch.cat([u[:, :-1], -u[:, -1:]], 1), torch.cat([s[:-1], -s[-1:]]), vh),
    "a vector twice": lambda u, s, vh: (u[:, [0, 0, *range(2, len(s))]], s, vh),
    "a number that is none": lambda u, s, vh: (u * float("nan"), s, vh),
}


@pytest.mark.parametrize("name", PERTURBED)
def test_a_perturbed_svd_is_computed_again_on_the_cpu(name):
    matrix = matrix_of("random")

    def perturbed(matrix):
        return Triplets(*PERTURBED[name](*svd_by_qr(matrix)))

    assert not svd_error(matrix, perturbed(matrix)) <= TOLERANCE
    with pytest.warns(UserWarning, match=r"96 × 40 matrix on .* is computed again on the CPU"):
        result = checked(matrix, perturbed, full_svd, svd_error)
    assert all(map(torch.equal, result, full_svd(matrix.cpu())))


def test_a_decomposition_that_fails_on_the_device_is_computed_again_on_the_cpu():
    matrix = matrix_of("random")

    def fails(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    with pytest.warns(UserWarning, match="out of memory"):
        assert torch.equal(checked(matrix, fails, full_svd, svd_error).s, full_svd(matrix.cpu()).s)


def test_an_exact_decomposition_is_not_computed_twice():
    def never(_):
        raise AssertionError("the CPU computes although the device's result is exact")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checked(matrix_of("random"), svd_by_qr, never, svd_error)


def test_a_matrix_without_a_decomposition_is_refused():
    matrix = matrix_of("random")
    matrix[3, 4] = float("nan")
    with pytest.warns(UserWarning), pytest.raises((RuntimeError, torch.linalg.LinAlgError)):
        checked(matrix, svd_by_qr, full_svd, svd_error)


def test_perturbed_eigenvectors_exceed_the_tolerance():
    weight = matrix_of("random")
    square = weight.T @ weight
    values, vectors = torch.linalg.eigh(square)
    assert eigen_error(square, (values, vectors)) < TOLERANCE / 100
    assert torch.equal(vectors.flip(1).cpu(), smaller_side(weight.cpu()))
    for wrong in ((values, vectors + 1e-8 * vectors.roll(1, 1)), (values.flip(0), vectors), (values, vectors * float("nan"))):
        assert not eigen_error(square, wrong) <= TOLERANCE


def test_what_a_gpu_computed_has_files_of_its_own():
    assert of_device("triplets", torch.device("cpu")) == "triplets"
    assert of_device("triplets", torch.device("cuda", 3)) == "triplets-cuda"
