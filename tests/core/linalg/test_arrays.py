"""Bare functions on parameters, half precision and arrays of other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import rankfold as rf
from rankfold.decompose.cp import parafac
from rankfold.decompose.tucker2 import partial_tucker2
from rankfold.ops import Chain
from rankfold.ops.reference import forward, reconstruct

RNG = np.random.default_rng(0)
MATRIX, KERNEL = RNG.standard_normal((13, 9)), RNG.standard_normal((13, 9, 3, 2))
BIAS = RNG.standard_normal(13)

ARRAYS: dict[str, Callable[[Any], Any]] = {
    "parameter": lambda a: torch.nn.Parameter(torch.tensor(a, dtype=torch.float32)),
    "bfloat16 parameter": lambda a: torch.nn.Parameter(torch.tensor(a, dtype=torch.bfloat16)),
    "float16 parameter": lambda a: torch.nn.Parameter(torch.tensor(a, dtype=torch.float16)),
    "result with a graph": lambda a: torch.tensor(a, requires_grad=True) * 1.0,
    "bfloat16 of NumPy": lambda a: a.astype(ml_dtypes.bfloat16),
    "float16 of NumPy": lambda a: a.astype(np.float16),
    "JAX": lambda a: jnp.asarray(a, dtype=jnp.float32),
    "bfloat16 of JAX": lambda a: jnp.asarray(a, dtype=jnp.bfloat16),
    "float16 of JAX": lambda a: jnp.asarray(a, dtype=jnp.float16),
}
CHAINS: dict[str, Callable[[Any, Any, Any], tuple[rf.Op, Chain]]] = {
    "svd": lambda m, k, b: _with(rf.Linear(m, b), lambda op: rf.truncated_svd(op, 9)),
    "table": lambda m, k, b: _with(rf.Embedding(m), lambda op: rf.truncated_svd(op, 9)),
    "channel_svd": lambda m, k, b: _with(rf.Conv(k, b), lambda op: rf.channel_svd(op, 13)),
    "spatial_svd": lambda m, k, b: _with(rf.Conv(k, b), lambda op: rf.spatial_svd(op, 26)),
    "tucker2": lambda m, k, b: _with(rf.ConvTranspose(k, b), lambda op: rf.tucker2(op, (13, 9))),
    "cp": lambda m, k, b: _with(rf.Conv(k, b), lambda op: rf.cp(op, 54)),
}


def _with(op: rf.Op, method: Callable[[rf.Op], Chain]) -> tuple[rf.Op, Chain]:
    return op, method(op)


def numbers(array: Any) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        array = array.detach().double().numpy()
    return np.asarray(array).astype(np.float64)


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("method", CHAINS)
def test_a_chain_is_made_of_any_librarys_array_and_shares_nothing_with_it(
    method: str, kind: str
) -> None:
    matrix, kernel, bias = (ARRAYS[kind](array) for array in (MATRIX, KERNEL, BIAS))
    op, chain = CHAINS[method](matrix, kernel, bias)
    original = numbers(matrix if op.weight.ndim == 2 else kernel)
    np.testing.assert_allclose(numbers(reconstruct(op, chain)), original, atol=2e-2)
    before = numbers(chain[-1].weight), numbers(op.weight)
    for stage in chain:
        for array in (stage.weight, stage.bias):
            if isinstance(array, torch.Tensor):
                assert not array.requires_grad
                array.zero_()
            elif array is not None:
                array[...] = 0.0
    assert before[0].any()
    for given, plain in ((matrix, MATRIX), (kernel, KERNEL), (bias, BIAS)):
        np.testing.assert_array_equal(numbers(given), numbers(ARRAYS[kind](plain)))


@pytest.mark.parametrize("kind", ARRAYS)
def test_bare_tensors_of_any_library(kind: str) -> None:
    low = (MATRIX[:, :2] @ MATRIX[:2, :]) * np.array(1.0) + 0.01 * MATRIX
    given = ARRAYS[kind](low)
    assert rf.evbmf(given).rank == rf.evbmf(numbers(given)).rank
    kernel = ARRAYS[kind](KERNEL)
    core, _ = partial_tucker2(kernel, (4, 3))
    assert numbers(core).shape == (4, 3, 3, 2)
    assert parafac(kernel, 2).rank == 2
    x = ARRAYS[kind](RNG.standard_normal((2, 9)))
    out = forward(rf.Linear(given, ARRAYS[kind](BIAS)), x)
    np.testing.assert_allclose(
        numbers(out), numbers(x) @ numbers(given).T + numbers(ARRAYS[kind](BIAS)), atol=1e-5
    )


@pytest.mark.parametrize("given", ["text", [["a", "b"]], object(), [[1.0], [1.0, 2.0]]])
def test_what_is_no_matrix_is_an_error_of_ours(given: Any) -> None:
    with pytest.raises(rf.RankfoldError):
        rf.evbmf(given)
