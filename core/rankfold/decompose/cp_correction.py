"""Error-preserving correction of CP: the least norms of rank-1 terms within an error bound.

Large rank-1 terms that cancel are what makes CP networks impossible to fine-tune. Going through the
modes, each factor with the others normalised minimises its own squared norm subject to
‖T − T̂‖ ≤ bound·‖T‖: a ridge solution whose ridge is the root of a scalar equation (Phan et al.,
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
"""At most; a sweep that gains less than `_LEAST_GAIN` is the last."""
_LEAST_GAIN = 1e-3
"""Relative decrease of the summed squared norms by a sweep, below which more sweeps gain little."""


def correct(tensor: Array, start: Fit, error_bound: float) -> Fit:
    """Lower the sum of squared norms of the rank-1 terms within an error bound.

    Args:
        tensor: (out, in, *kernel), float64.
        start: a model of it.
        error_bound: relative to ‖T‖; where `start` is above it, its error is lowered instead.

    Returns:
        The corrected model, balanced.
    """
    from rankfold.decompose.tensor_algebra import Fit

    energy = linalg.inner(tensor, tensor)
    factors = list(start.factors)
    error = start.error
    for _ in range(SWEEPS):
        before = sum_of_squares(factors)
        for mode in range(tensor.ndim):
            # With unit columns in all other factors, ‖a_r‖ is the norm of the whole term r, so
            # that ‖A‖² is the very sum that is to become least.
            for other in range(tensor.ndim):
                if other != mode:
                    factors[mode], factors[other] = _move_norms(factors[mode], factors[other])
            product = mttkrp(tensor, factors, mode)
            gram = gram_product([f for m, f in enumerate(factors) if m != mode])
            factors[mode], error = _least_norm(product, gram, energy, error_bound)
        if sum_of_squares(factors) > before * (1.0 - _LEAST_GAIN):
            break
    return Fit(balance(factors), error)


def _least_norm(
    product: Array, gram: Array, energy: float, error_bound: float
) -> tuple[Array, float]:
    """Return the factor A of least norm within the error bound, and its relative error.

    Args:
        product: M, (size, rank): the unfolding times the Khatri-Rao product K of the others.
        gram: G = Kᵀ K, (rank, rank).
        energy: E = ‖T‖².
        error_bound: relative to ‖T‖.
    """
    from scipy.optimize import brentq

    # min ‖A‖²  subject to  ‖T − A Kᵀ‖² = E − 2⟨A, M⟩ + ⟨A, A G⟩ ≤ bound² E.
    # The Lagrangian is stationary at A (G + λ) = M for a ridge λ ≥ 0. With G = V diag(σ) Vᵀ and
    # c_i = ‖M v_i‖², A = M V (σ + λ)⁻¹ Vᵀ, and the squared residual is
    #     f(λ) = E − Σ_i c_i (σ_i + 2λ) / (σ_i + λ)²,   f'(λ) = 2λ Σ_i c_i / (σ_i + λ)³ ≥ 0.
    # f rises, ‖A‖ falls with λ: the best λ is the one root of f(λ) = bound² E, sought in log λ.
    # Below 1e-10 σ_max a ridge does nothing, above 1e6 σ_max A is all but zero; where f is above
    # the bound even at the lower end, that is the least-squares factor.

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
    """Scale the columns of `source` to norm 1, and those of `to` by what they lose."""
    norms = linalg.norms(source, 0)
    alive = linalg.cast(norms > 0.0, norms.dtype)
    return to * norms, source / (norms + (1.0 - alive))
