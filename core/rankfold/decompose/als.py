"""Fitting a CP model to a kernel: ridge-regularised alternating least squares.

A tensor (out, in, *kernel) is fitted by Σ_r a_r ∘ b_r ∘ c_r (∘ ...). Each sweep costs two GEMMs:
the contraction with the input factor serves the output mode and every kernel mode, the
contraction with the output factor serves the input mode.

* The normal equations carry a ridge relative to their mean eigenvalue: it bounds the cancelling
  rank-1 terms that make CP networks impossible to fine-tune, for a slightly higher error.
* Factors are extrapolated between sweeps; the momentum is halved with a restart when the error
  rises.
* Where the rank is below a channel count the fit runs on the Tucker core and is expanded
  afterwards (CANDELINC: Carroll, Pruzansky and Kruskal, Psychometrika 45, 1980).
* Error-preserving correction (Phan et al., arXiv 2008.05441) then lowers the norms of the rank-1
  terms as far as a given error bound allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rankfold import linalg
from rankfold.ops import Array

RIDGE = 1e-3
CORRECTION_SWEEPS = 10
_TOLERANCE = 1e-5
_CHEAP = 20_000_000  # multiplications of a sweep
_MOMENTUM = (0.5, 0.98)


@dataclass(frozen=True, eq=False)
class Fit:
    """Factor matrices (size of the mode, rank), one per mode, and ‖T − T̂‖ / ‖T‖."""

    factors: tuple[Array, ...]
    error: float


def full_rank(shape: tuple[int, ...]) -> int:
    """A rank at which every tensor of that shape has an exact CP model."""
    return math.prod(shape) // max(shape)


def fit(tensor: Array, rank: int, rng: np.random.Generator) -> Fit:
    """CP model of a tensor (out, in, *kernel), finite for every finite tensor.

    Args:
        tensor: float64, at least two modes, not all zero.
        rank: 1 to `full_rank(tensor.shape)`; at the latter the model is exact.
        rng: draws the further starts that small tensors get.
    """
    sliced = _from_slices(tensor, rank)
    if rank >= full_rank(tensor.shape) or tensor.ndim == 2:
        return sliced
    bases = [
        linalg.leading(_unfold(tensor, mode)[None], rank)[0] if rank < tensor.shape[mode] else None
        for mode in (0, 1)
    ]
    core = tensor
    for mode, basis in enumerate(bases):
        if basis is not None:
            core = _multiply(core, basis.T, mode)
    effort = _Effort.of(core, rank)
    starts = [_from_slices(core, rank).factors]
    for _ in range(effort.starts - 1):
        starts.append(tuple(rng.standard_normal((size, rank)) for size in core.shape))
    tried = [_als(core, start, effort.trial_sweeps, RIDGE) for start in starts]
    best = min(tried, key=lambda candidate: candidate.error)
    small = _als(core, best.factors, effort.sweeps, RIDGE)
    factors = list(small.factors)
    for mode, basis in enumerate(bases):
        if basis is not None:
            factors[mode] = basis @ factors[mode]
    if all(basis is None for basis in bases):
        fitted = small
    else:
        fitted = _als(tensor, tuple(factors), _Effort.of(tensor, rank).last_sweeps, RIDGE)
    best = min(fitted, sliced, key=lambda candidate: candidate.error)
    return Fit(balance(best.factors), best.error)


@dataclass(frozen=True)
class _Effort:
    """How often to start and to sweep: local minima are cheap to avoid where sweeps are cheap."""

    starts: int
    trial_sweeps: int
    sweeps: int
    last_sweeps: int

    @staticmethod
    def of(tensor: Array, rank: int) -> _Effort:
        work = 4 * tensor.size * rank
        return _Effort(
            starts=5 if work < _CHEAP else 2 if work < 10 * _CHEAP else 1,
            trial_sweeps=20,
            sweeps=max(40, min(200, 40 * _CHEAP // work)),
            last_sweeps=max(3, min(40, 10 * _CHEAP // work)),
        )


def correct(tensor: Array, start: Fit, error_bound: float) -> Fit:
    """The model with the least sum of squared rank-1 norms found within an error bound.

    Going through the modes, each factor with the others normalised minimises its own squared norm
    subject to ‖T − T̂‖ ≤ bound·‖T‖: a ridge solution whose weight is the root of a scalar equation.

    Args:
        tensor: float64 (out, in, *kernel).
        start: a model of it.
        error_bound: relative to ‖T‖; where `start` is above it, its error is lowered instead.
    """
    energy = float(np.vdot(tensor, tensor))
    factors = list(start.factors)
    error = start.error
    for _ in range(CORRECTION_SWEEPS):
        before = sum_of_squares(factors)
        for mode in range(tensor.ndim):
            for other in range(tensor.ndim):
                if other != mode:
                    factors[mode], factors[other] = _move_norms(factors[mode], factors[other])
            product = _mttkrp(tensor, factors, mode)
            gram = _gram_product([f for m, f in enumerate(factors) if m != mode])
            factors[mode], error = _least_norm(product, gram, energy, error_bound)
        if sum_of_squares(factors) > before * (1.0 - 1e-3):
            break
    return Fit(balance(tuple(factors)), error)


def sum_of_squares(factors: list[Array] | tuple[Array, ...]) -> float:
    """Σ_r ‖a_r ∘ b_r ∘ ...‖², the squared norms of the rank-1 terms."""
    norms = np.ones(factors[0].shape[1])
    for factor in factors:
        norms = norms * np.einsum("nr,nr->r", factor, factor)
    return float(norms.sum())


def sensitivity(factors: tuple[Array, ...]) -> float:
    """Expected squared change of the tensor per unit variance of noise on every factor entry.

    Σ_n I_n Σ_r Π_{m≠n} ‖a_r⁽ᵐ⁾‖² (Phan et al., arXiv 2008.05441).
    """
    squares = np.stack([np.einsum("nr,nr->r", f, f) for f in factors])
    return float(
        sum(
            len(factor) * np.prod(np.delete(squares, mode, axis=0), axis=0).sum()
            for mode, factor in enumerate(factors)
        )
    )


def balance(factors: tuple[Array, ...]) -> tuple[Array, ...]:
    """The same model with the norm of each rank-1 term spread evenly over its vectors."""
    norms = np.stack([np.linalg.norm(factor, axis=0) for factor in factors])
    alive = norms.min(axis=0) > 0.0
    logs = np.log(np.where(alive, norms, 1.0))
    target = np.exp(logs.mean(axis=0))
    return tuple(
        np.where(alive, factor * (target / np.where(alive, norm, 1.0)), 0.0)
        for factor, norm in zip(factors, norms, strict=True)
    )


def _als(tensor: Array, factors: tuple[Array, ...], sweeps: int, ridge: float) -> Fit:
    energy = float(np.vdot(tensor, tensor))
    error = _error(tensor, factors, energy)
    best = Fit(factors, error)
    previous = current = factors
    momentum = _MOMENTUM[0]
    for _ in range(sweeps):
        ahead = tuple(f + momentum * (f - old) for f, old in zip(current, previous, strict=True))
        new, new_error = _sweep(tensor, ahead, energy, ridge)
        if new_error > error:
            momentum *= 0.5
            new, new_error = _sweep(tensor, current, energy, ridge)
        else:
            momentum = min(_MOMENTUM[1], momentum * 1.1)
        previous, current = current, new
        if new_error < best.error:
            best = Fit(new, new_error)
        if abs(error - new_error) < _TOLERANCE * new_error:
            break
        error = new_error
    return best


def _sweep(
    tensor: Array, factors: tuple[Array, ...], energy: float, ridge: float
) -> tuple[tuple[Array, ...], float]:
    out, into = tensor.shape[:2]
    rank = factors[0].shape[1]
    _, b, *kernel = factors
    grams = [f.T @ f for f in factors]

    by_input = np.moveaxis(tensor, 1, -1).reshape(-1, into) @ b
    by_input = by_input.reshape(out, -1, rank)
    others = _hadamard(grams[1:])
    a = linalg.ridge_solve(others, np.einsum("okr,kr->or", by_input, _khatri_rao(kernel)), ridge)
    grams[0] = a.T @ a

    reduced = np.einsum("okr,or->kr", by_input, a).reshape(*tensor.shape[2:], rank)
    for axis in range(len(kernel)):
        rest = [f for other, f in enumerate(kernel) if other != axis]
        flat = np.moveaxis(reduced, axis, 0).reshape(tensor.shape[2 + axis], -1, rank)
        product = np.einsum("npr,pr->nr", flat, _khatri_rao(rest)) if rest else flat[:, 0]
        others = _hadamard([g for mode, g in enumerate(grams) if mode != 2 + axis])
        kernel[axis] = linalg.ridge_solve(others, product, ridge)
        grams[2 + axis] = kernel[axis].T @ kernel[axis]

    by_output = (a.T @ tensor.reshape(out, -1)).reshape(rank, into, -1)
    product = np.einsum("rik,kr->ir", by_output, _khatri_rao(kernel))
    others = _hadamard([g for mode, g in enumerate(grams) if mode != 1])
    b = linalg.ridge_solve(others, product, ridge)
    grams[1] = b.T @ b

    squared = energy - 2.0 * float(np.vdot(product, b)) + float(_hadamard(grams).sum())
    return (a, b, *kernel), math.sqrt(max(squared, 0.0) / energy)


def _from_slices(tensor: Array, rank: int) -> Fit:
    """The leading rank-1 terms of the SVDs of all slices along the two largest modes.

    The slices are orthogonal to one another, so the error is the energy of the terms left out, and
    with all of them the model is exact.
    """
    energy = float(np.vdot(tensor, tensor))
    order = sorted(range(tensor.ndim), key=lambda mode: -tensor.shape[mode])
    rows, columns = sorted(order[:2])
    rest = sorted(order[2:])
    slices = tensor.transpose(*rest, rows, columns).reshape(
        -1, tensor.shape[rows], tensor.shape[columns]
    )
    wide = slices.shape[1] <= slices.shape[2]
    eigen = linalg.eigh(linalg.gram(slices if wide else slices.swapaxes(-1, -2)))
    if wide:
        left = eigen.vectors
        right = np.matmul(slices.swapaxes(-1, -2), left)
    else:
        right = eigen.vectors
        left = np.matmul(slices, right)
    strengths = np.einsum("snr,snr->sr", left, left) * np.einsum("snr,snr->sr", right, right)
    chosen = np.argsort(-strengths, axis=None, kind="stable")[:rank]
    which, column = np.unravel_index(chosen, strengths.shape)
    factors: list[Array] = [np.empty(0)] * tensor.ndim
    factors[rows] = left[which, :, column].T
    factors[columns] = right[which, :, column].T
    sizes = [tensor.shape[mode] for mode in rest]
    places = np.unravel_index(which, sizes) if rest else ()
    for mode, place in zip(rest, places, strict=True):
        factors[mode] = np.eye(tensor.shape[mode])[:, place]
    left_out = max(energy - float(strengths.ravel()[chosen].sum()), 0.0)
    return Fit(balance(tuple(factors)), math.sqrt(left_out / energy))


def _error(tensor: Array, factors: tuple[Array, ...], energy: float) -> float:
    product = _mttkrp(tensor, list(factors), 0)
    squared = energy - 2.0 * float(np.vdot(product, factors[0]))
    squared += float(_gram_product(list(factors)).sum())
    return math.sqrt(max(squared, 0.0) / energy)


def _least_norm(
    product: Array, gram: Array, energy: float, error_bound: float
) -> tuple[Array, float]:
    """The least ‖A‖ within the bound, where the squared residual is E − 2⟨A, M⟩ + ⟨A, A G⟩."""
    from scipy.optimize import brentq

    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, 1e-12 * values[-1])
    rotated = product @ vectors
    column = np.einsum("nr,nr->r", rotated, rotated)

    def residual(log_ridge: float) -> float:
        ridge = math.exp(log_ridge)
        return energy - float((column * (values + 2.0 * ridge) / (values + ridge) ** 2).sum())

    low, high = math.log(values[-1] * 1e-10), math.log(values[-1] * 1e6)
    target = error_bound**2 * energy
    if residual(low) >= target:
        log_ridge = low
    elif residual(high) <= target:
        log_ridge = high
    else:
        log_ridge = brentq(lambda z: residual(z) - target, low, high, xtol=1e-6)
    factor = (rotated / (values + math.exp(log_ridge))) @ vectors.T
    return factor, math.sqrt(max(residual(log_ridge), 0.0) / energy)


def _move_norms(to: Array, source: Array) -> tuple[Array, Array]:
    norms = np.linalg.norm(source, axis=0)
    safe = np.where(norms > 0.0, norms, 1.0)
    return to * norms, source / safe


def _mttkrp(tensor: Array, factors: list[Array], mode: int) -> Array:
    rest = [f for other, f in enumerate(factors) if other != mode]
    return _unfold(tensor, mode) @ _khatri_rao(rest)


def _gram_product(factors: list[Array]) -> Array:
    return _hadamard([f.T @ f for f in factors])


def _hadamard(matrices: list[Array]) -> Array:
    product = matrices[0]
    for matrix in matrices[1:]:
        product = product * matrix
    return product


def _khatri_rao(factors: list[Array]) -> Array:
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, None, :] * factor[None, :, :]).reshape(-1, factor.shape[1])
    return product


def _unfold(tensor: Array, mode: int) -> Array:
    return np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)


def _multiply(tensor: Array, matrix: Array, mode: int) -> Array:
    return np.moveaxis(np.tensordot(matrix, tensor, axes=(1, mode)), 0, mode)
