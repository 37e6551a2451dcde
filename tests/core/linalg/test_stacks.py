"""Operations on stacks of matrices are NumPy's on the arrays of any library, and stay with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rankfold import linalg

RNG = np.random.default_rng(0)
STACK = RNG.standard_normal((2, 6, 6)).astype(np.float32)
ROWS = RNG.standard_normal((2, 5, 6)).astype(np.float32)
MOMENT = ROWS.mT @ ROWS
BASIS = RNG.standard_normal((2, 3, 2)).astype(np.float32)
DIAGONAL = RNG.standard_normal((2, 6)).astype(np.float32)
SPLIT = RNG.standard_normal((2, 3, 4, 3, 4)).astype(np.float32)
SPARSE = np.where(STACK > 0.0, STACK, np.nan)
LIBRARIES: dict[str, Callable[[Any], Any]] = {"torch": torch.tensor, "JAX": jnp.asarray}
OPERATIONS: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "product": (linalg.product, (ROWS, STACK)),
    "einsum": (lambda a, b: linalg.einsum("gij,gj->gi", a, b), (STACK, DIAGONAL)),
    "concatenated": (lambda a, b: linalg.concatenated([a, b], axis=1), (ROWS, STACK)),
    "selected": (lambda a: linalg.selected(a, [1]), (STACK,)),
    "put": (lambda a, b: linalg.put(linalg.copied(a), [1], b[1:]), (STACK, MOMENT)),
    "added at": (
        lambda a, b: linalg.added_at(linalg.copied(a), (slice(1, 2), slice(0, 6)), b[1:]),
        (STACK, MOMENT),
    ),
    "identity": (lambda a: a + linalg.identity(6, a), (STACK,)),
    "diagonals": (linalg.diagonals, (STACK,)),
    "traces": (linalg.traces, (STACK,)),
    "loaded": (lambda a: linalg.loaded(a, np.array([0.5, 2.0])), (STACK,)),
    "scaled groups": (lambda a: linalg.scaled(a, np.array([0.5, 2.0]), 0), (STACK,)),
    "scaled columns": (lambda a: linalg.scaled(a, np.full((2, 6), 3.0), 2), (STACK,)),
    "squares": (linalg.squares, (STACK,)),
    "energy": (lambda a: linalg.energy(linalg.single(a)), (STACK,)),
    "largest": (linalg.largest, (STACK,)),
    "largest of none above 0": (lambda a: linalg.largest(-abs(a)), (STACK,)),
    "diagonal matrices": (linalg.diagonal_matrices, (DIAGONAL,)),
    "repeated": (lambda a: linalg.repeated(a, 3), (STACK,)),
    "kept where": (lambda a: linalg.kept_where(a > 0.0, a), (SPARSE,)),
    "at least": (lambda a: linalg.at_least(a, 0.1), (STACK,)),
    "root": (linalg.root, (STACK,)),
    "along channels": (linalg.along_channels, (ROWS, BASIS)),
    "both sides": (linalg.both_sides, (MOMENT, BASIS)),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_that_of_numpy_and_changes_no_argument(
    operation: str, library: str
) -> None:
    function, arguments = OPERATIONS[operation]
    arrays = [LIBRARIES[library](array) for array in arguments]
    expected = function(*arguments)
    with jax.enable_x64(True):
        actual = function(*arrays)
    if isinstance(expected, np.ndarray) and expected.ndim > 1:
        assert isinstance(actual, type(arrays[0]))
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-4, atol=1e-5)
    for array, argument in zip(arrays, arguments, strict=True):
        np.testing.assert_array_equal(np.asarray(array), argument)


def test_the_wider_of_two_precisions_is_computed_in() -> None:
    narrow, wide = torch.tensor(ROWS), torch.tensor(STACK).double()
    assert linalg.product(narrow, wide).dtype == torch.float64
    assert linalg.einsum("gij,gjk->gik", narrow, wide).dtype == torch.float64
    assert linalg.concatenated([narrow, wide], axis=1).dtype == torch.float64


@pytest.mark.parametrize("array", [SPLIT, torch.tensor(SPLIT)], ids=["NumPy", "torch"])
def test_axes_of_equal_indices_are_summed_in_float64(array: Any) -> None:
    contracted = linalg.contracted(array, 2, 4)
    expected = np.einsum("gipjp->gij", SPLIT.astype(np.float64))
    assert str(contracted.dtype).endswith("float64")
    np.testing.assert_allclose(np.asarray(contracted), expected, atol=1e-12)


def test_a_copy_of_a_turned_tensor_is_in_c_order() -> None:
    turned = torch.tensor(STACK).mT
    for copy in (linalg.contiguous(turned), linalg.copied(turned)):
        assert copy.is_contiguous()
        assert copy.data_ptr() != turned.data_ptr()
        np.testing.assert_array_equal(copy.numpy(), STACK.mT)


def test_what_cannot_be_written_to_is_copied_to_a_tensor_without_a_warning() -> None:
    array = np.arange(6.0)
    frozen = array[::-1]
    frozen.flags.writeable = False
    moved = linalg.like(frozen, torch.zeros(1))
    moved[0] = 9.0
    assert array[-1] == 5.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_and_systems_of_tensors_are_those_of_numpy(dtype: torch.dtype) -> None:
    matrix = torch.tensor(MOMENT + 0.1 * np.eye(6)).to(dtype)
    lower = linalg.cholesky(matrix)
    assert lower.dtype == dtype
    for transposed in (False, True):
        solved = linalg.solve_triangular(lower, torch.tensor(STACK), transposed=transposed)
        expected = linalg.solve_triangular(lower.numpy(), STACK, transposed=transposed)
        np.testing.assert_allclose(solved.numpy(), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(np.linalg.LinAlgError):
        linalg.cholesky(-matrix)
