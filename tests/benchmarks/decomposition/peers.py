"""What others do for the same purpose: TensorLy, NumPy, PyTorch, scikit-learn, the usual script.

Each takes the float32 weight as it is and works in the precision that it chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorly as tl
import torch
from sklearn.utils.extmath import randomized_svd
from tensorly import decomposition

from rankfold.decompose.evbmf import EVBMF, from_squares
from rankfold.linalg import Array

ITERATIONS = 100
"""Of alternating least squares: as many as TensorLy makes by itself."""


def partial_tucker(weight: Array, ranks: Sequence[int]) -> Any:
    """TensorLy's Tucker-2 along the channel modes: (core, factors)."""
    found, _ = decomposition.partial_tucker(weight, list(ranks), modes=[0, 1], init="svd")
    return found


def scripted_tucker(weight: Array) -> Any:
    """EVBMF ranks from full SVDs of both unfoldings, then TensorLy's Tucker-2."""
    unfoldings = (tl.unfold(weight, 0), tl.unfold(weight, 1))
    return partial_tucker(weight, [max(1, full_svd_evbmf(one).rank) for one in unfoldings])


def dense_tucker(found: Any) -> Array:
    """What a Tucker-2 model stands for, in float64."""
    core, factors = found
    factors = [factor.astype(np.float64) for factor in factors]
    dense: Array = tl.tenalg.multi_mode_dot(core.astype(np.float64), factors, modes=[0, 1])
    return dense


def parafac(tensor: Array, rank: int) -> Any:
    """TensorLy's CP from a random start, without a look at the error between the iterations."""
    return decomposition.parafac(
        tensor, rank, n_iter_max=ITERATIONS, tol=0, init="random", random_state=0
    )


def dense_cp(found: Any) -> Array:
    """What a CP model stands for, in float64."""
    weights, factors = found
    dense: Array = tl.cp_to_tensor(
        (weights.astype(np.float64), [factor.astype(np.float64) for factor in factors])
    )
    return dense


def full_svd_evbmf(matrix: Array) -> EVBMF:
    """EVBMF from a full singular value decomposition."""
    _, values, _ = np.linalg.svd(matrix, full_matrices=False)
    return from_squares(values.astype(np.float64) ** 2, (matrix.shape[0], matrix.shape[1]))


def numpy_svd(matrix: Array, rank: int) -> tuple[Array, Array]:
    """The two factors of the best approximation, from a full SVD."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank] * values[:rank], right[:rank]


def torch_svd(matrix: Array, rank: int) -> tuple[Array, Array]:
    """The two factors by PyTorch's randomized SVD with two power iterations."""
    torch.manual_seed(0)
    left, values, right = torch.svd_lowrank(torch.from_numpy(matrix), q=rank, niter=2)
    return (left * values).numpy(), right.T.numpy()


def sklearn_svd(matrix: Array, rank: int) -> tuple[Array, Array]:
    """The two factors by scikit-learn's randomized SVD as it comes."""
    left, values, right = randomized_svd(matrix, n_components=rank, random_state=0)
    return left * values, right


def dense_product(found: tuple[Array, Array]) -> Array:
    """What two factors stand for, in float64."""
    left, right = found
    dense: Array = left.astype(np.float64) @ right.astype(np.float64)
    return dense
