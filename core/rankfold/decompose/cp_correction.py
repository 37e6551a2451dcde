"""Error-preserving correction: the least norms of rank-1 terms within an error bound.

Large rank-1 terms that cancel are what makes CP networks impossible to fine-tune. Going through the
modes, each factor with the others normalised minimises its own squared norm subject to
‖T − T̂‖ ≤ bound·‖T‖: a ridge solution whose weight is the root of a scalar equation (Phan et al.,
arXiv 2008.05441).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from rankfold import linalg
from rankfold.decompose.tensor_algebra import balance, gram_product, mttkrp, sum_of_squares
from rankfold.linalg import Array

if TYPE_CHECKING:
    from rankfold.decompose.tensor_algebra import Fit

SWEEPS = 10


def correct(tensor: Array, start: Fit, error_bound: float) -> Fit:
    """The model with the least sum of squared rank-1 norms found within an error bound.

    Args:
        tensor: float64 (out, in, *kernel).
        start: a model of it.
        error_bound: relative to ‖T‖; where `start` is above it, its error is lowered instead.
    """
    from rankfold.decompose.tensor_algebra import Fit

    energy = linalg.inner(tensor, tensor)
    factors = list(start.factors)
    error = start.error
    for _ in range(SWEEPS):
        before = sum_of_squares(factors)
        for mode in range(tensor.ndim):
            for other in range(tensor.ndim):
                if other != mode:
                    factors[mode], factors[other] = _move_norms(factors[mode], factors[other])
            product = mttkrp(tensor, factors, mode)
            gram = gram_product([f for m, f in enumerate(factors) if m != mode])
            factors[mode], error = _least_norm(product, gram, energy, error_bound)
        if sum_of_squares(factors) > before * (1.0 - 1e-3):
            break
    return Fit(balance(factors), error)


def _least_norm(
    product: Array, gram: Array, energy: float, error_bound: float
) -> tuple[Array, float]:
    """The least ‖A‖ within the bound, where the squared residual is E − 2⟨A, M⟩ + ⟨A, A G⟩."""
    from scipy.optimize import brentq

    eigen = linalg.eigh(gram[None])
    values, vectors = eigen.values[0], eigen.vectors[0]
    values = np.maximum(values, 1e-12 * values[0])
    rotated = product @ vectors
    column = linalg.host((rotated * rotated).sum(axis=0))

    def residual(log_ridge: float) -> float:
        ridge = math.exp(log_ridge)
        return energy - float((column * (values + 2.0 * ridge) / (values + ridge) ** 2).sum())

    low, high = math.log(values[0] * 1e-10), math.log(values[0] * 1e6)
    target = error_bound**2 * energy
    if residual(low) >= target:
        log_ridge = low
    elif residual(high) <= target:
        log_ridge = high
    else:
        log_ridge = brentq(lambda z: residual(z) - target, low, high, xtol=1e-6)
    factor = (rotated / linalg.like(values + math.exp(log_ridge), rotated)) @ vectors.mT
    return factor, math.sqrt(max(residual(log_ridge), 0.0) / energy)


def _move_norms(to: Array, source: Array) -> tuple[Array, Array]:
    norms = linalg.norms(source, 0)
    alive = linalg.cast(norms > 0.0, norms.dtype)
    return to * norms, source / (norms + (1.0 - alive))
