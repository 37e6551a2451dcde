"""Fitting a CP model to a kernel: ridge-regularised alternating least squares.

A tensor (out, in, *kernel) is fitted by Σ_r a_r ∘ b_r ∘ c_r (∘ ...). Each sweep costs two GEMMs:
the contraction with the input factor serves the output mode and every kernel mode, the
contraction with the output factor serves the input mode.

* The normal equations carry a ridge relative to their mean eigenvalue: it bounds the cancelling
  rank-1 terms that make CP networks impossible to fine-tune, for a slightly higher error. At the
  end, where sweeps are cheap or the error is small, it is lowered as long as the squared norms of
  the terms stay what they are: where nothing cancels, nothing is lost to it.
* Factors are extrapolated between sweeps; the momentum is halved with a restart when the error
  rises.
* Where the rank is below a channel count the fit runs on the Tucker core and is expanded
  afterwards (CANDELINC: Carroll, Pruzansky and Kruskal, Psychometrika 45, 1980).
* One start is algebraic (see `pencil`): a tensor that is of the rank asked for, or all but is, has
  its model there, where sweeps from elsewhere end in local minima.
* Sweeps over large tensors run in float32 until the error gets too small to be seen in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankfold import linalg
from rankfold.decompose.cp_pencil import from_pencil
from rankfold.decompose.tensor_algebra import (
    Fit,
    balance,
    hadamard,
    khatri_rao,
    multiply,
    relative_sensitivity,
    sum_of_squares,
    unfold,
)
from rankfold.linalg import Array

RIDGE = 1e-3
_LOWER_RIDGES = (1e-5, 1e-7)
_MOST_GROWTH = 1.1
_SMALL = 0.05
_LARGE = 2_000_000
MOST_SENSITIVE = 100.0
"""What `relative_sensitivity` may be; a stronger ridge is taken where it is more."""
_STRONGER_RIDGES = (1e-2, 1e-1)
_TOLERANCE = 1e-6
_CHEAP = 20_000_000  # multiplications of a sweep
_MOMENTUM = (0.8, 0.98)
_GROWTH = 1.5
_PRECISE = 1e-2
_EXACT = 1e-3  # noise of weights in half precision


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
    if rank >= full_rank(tensor.shape) or tensor.ndim == 2:
        return from_slices(tensor, rank)
    bases = [
        linalg.leading(unfold(tensor, mode)[None], rank)[0] if rank < tensor.shape[mode] else None
        for mode in (0, 1)
    ]
    core = tensor
    for mode, basis in enumerate(bases):
        if basis is not None:
            core = multiply(core, basis.mT, mode)
    effort = _Effort.of(core, rank)
    algebraic = from_pencil(core, rank, merge=effort.starts > 1)
    starts = [] if algebraic is None else [_measured(core, algebraic)]
    exact = any(start.error < _EXACT for start in starts)
    ridge = _LOWER_RIDGES[-1] if exact else RIDGE
    if not exact:
        # what sweeps have not seen counts as no error at all: they bound its terms first
        starts = [from_slices(core, rank), *(Fit(start.factors, math.inf) for start in starts)]
        for _ in range(effort.starts - len(starts)):
            drawn = (rng.standard_normal((size, rank)) for size in core.shape)
            starts.append(Fit(tuple(linalg.like(factor, core) for factor in drawn), math.inf))
        starts = [_als(core, start, effort.trial_sweeps, RIDGE) for start in starts]
    found = _als(core, min(starts, key=_error), effort.sweeps, ridge)
    last_sweeps = _Effort.of(tensor, rank).last_sweeps
    if any(basis is not None for basis in bases):
        factors = list(found.factors)
        for mode, basis in enumerate(bases):
            if basis is not None:
                factors[mode] = basis @ factors[mode]
        # its error is that on the core and what the core lacks
        expanded = tuple(factors)
        start = _measured(tensor, expanded) if exact else Fit(expanded, math.inf)
        found = _als(tensor, start, last_sweeps, ridge)
    cheap = effort.starts > 1
    if cheap or found.error < _SMALL:
        found = _closer(tensor, found, last_sweeps)
    if cheap:
        found = min(found, from_slices(tensor, rank), key=_error)
    return _bounded(tensor, Fit(balance(found.factors), found.error), last_sweeps)


def _measured(tensor: Array, factors: tuple[Array, ...]) -> Fit:
    """A model with its error."""
    apart = factors[0] @ khatri_rao(factors[1:]).mT - tensor.reshape(tensor.shape[0], -1)
    return Fit(factors, math.sqrt(linalg.inner(apart, apart) / linalg.inner(tensor, tensor)))


def _bounded(tensor: Array, found: Fit, sweeps: int) -> Fit:
    """The model with as strong a ridge as its sensitivity asks for."""
    energy = linalg.inner(tensor, tensor)
    for ridge in _STRONGER_RIDGES:
        if relative_sensitivity(found.factors, energy) <= MOST_SENSITIVE:
            break
        made = _als(tensor, Fit(found.factors, math.inf), sweeps, ridge)
        found = Fit(balance(made.factors), made.error)
    return found


def _closer(tensor: Array, found: Fit, sweeps: int) -> Fit:
    """The model with less of a ridge, unless its terms grow."""
    most = _MOST_GROWTH * sum_of_squares(found.factors)
    for ridge in _LOWER_RIDGES:
        closer = _als(tensor, found, sweeps, ridge)
        if sum_of_squares(closer.factors) > most:
            break
        found = closer
    return found


@dataclass(frozen=True)
class _Effort:
    """How often to start and to sweep: local minima are cheap to avoid where sweeps are cheap."""

    starts: int
    trial_sweeps: int
    sweeps: int
    last_sweeps: int

    @staticmethod
    def of(tensor: Array, rank: int) -> _Effort:
        work = 4 * math.prod(tensor.shape) * rank
        starts = max(1, min(8, _CHEAP // (3 * work)))
        return _Effort(
            starts=starts,
            trial_sweeps=20 if starts > 1 else 2,  # enough to tell an algebraic start from none
            sweeps=max(36, min(200, 100 * _CHEAP // work)),
            last_sweeps=max(6, min(60, 50 * _CHEAP // work)),
        )


def _als(tensor: Array, start: Fit, sweeps: int, ridge: float) -> Fit:
    energy = linalg.inner(tensor, tensor)
    error, best = start.error, start
    large = math.prod(tensor.shape) * start.factors[0].shape[1] > _LARGE
    coarse = large and ridge == RIDGE and error > _PRECISE
    sweeper = _Sweeper(linalg.single(tensor) if coarse else tensor, energy)
    previous = current = sweeper.cast(start.factors)
    momentum = _MOMENTUM[0]
    for _ in range(sweeps):
        if error <= _PRECISE and sweeper.coarse:
            sweeper = _Sweeper(tensor, energy)
            previous, current = sweeper.cast(previous), sweeper.cast(current)
        ahead = [f + momentum * (f - old) for f, old in zip(current, previous, strict=True)]
        new, new_error = sweeper.swept(ahead, ridge)
        if not new_error <= error:
            momentum *= 0.5
            new, new_error = sweeper.swept(current, ridge)
        else:
            momentum = min(_MOMENTUM[1], momentum * _GROWTH)
        if not math.isfinite(new_error):
            break
        previous, current = current, new
        if new_error < best.error:
            best = Fit(tuple(new), new_error)
        if abs(error - new_error) < _TOLERANCE * new_error:
            break
        error = new_error
    return Fit(tuple(linalg.double(factor) for factor in best.factors), best.error)


class _Sweeper:
    """A tensor laid out for sweeps, in its dtype.

    Args:
        tensor: (out, in, *kernel).
        energy: its squared norm.
    """

    def __init__(self, tensor: Array, energy: float) -> None:
        self.coarse = tensor.dtype == linalg.namespace(tensor).float32
        self._tensor = tensor
        self._energy = energy
        self._out, self._into, *self._kernel = tensor.shape
        flat = tensor.reshape(self._out, self._into, -1)
        by_input = linalg.contiguous(flat.swapaxes(1, 2))
        self._by_input = by_input.reshape(-1, self._into)  # (out · positions, in)
        by_output = linalg.contiguous(linalg.permuted(flat, (1, 2, 0)))
        self._by_output = by_output.reshape(-1, self._out)  # (in · positions, out)

    def cast(self, factors: Sequence[Array]) -> list[Array]:
        """Factors in the dtype of the tensor."""
        return [linalg.cast(factor, self._tensor.dtype) for factor in factors]

    def swept(self, factors: Sequence[Array], ridge: float) -> tuple[list[Array], float]:
        """One sweep over all modes, and the relative error after it."""
        einsum = linalg.namespace(self._tensor).einsum
        _, b, *kernel = factors
        rank = b.shape[1]
        grams = [f.mT @ f for f in factors]

        half = (self._by_input @ b).reshape(self._out, -1, rank)
        a = self._solved(grams, 0, einsum("okr,kr->or", half, khatri_rao(kernel)), ridge)

        reduced = einsum("okr,or->kr", half, a).reshape(*self._kernel, rank)
        for axis, size in enumerate(self._kernel):
            rest = [f for other, f in enumerate(kernel) if other != axis]
            order = (axis, *(other for other in range(len(kernel) + 1) if other != axis))
            product = linalg.permuted(reduced, order).reshape(size, -1, rank)
            if rest:
                product = einsum("npr,pr->nr", product, khatri_rao(rest))
            kernel[axis] = self._solved(grams, 2 + axis, product.reshape(size, rank), ridge)

        half = (self._by_output @ a).reshape(self._into, -1, rank)
        product = einsum("ikr,kr->ir", half, khatri_rao(kernel))
        b = self._solved(grams, 1, product, ridge)
        explained = 2.0 * linalg.inner(linalg.double(product), linalg.double(b))
        squared = self._energy - explained + float(linalg.double(hadamard(grams)).sum())
        return [a, b, *kernel], math.sqrt(max(squared, 0.0) / self._energy)

    def _solved(self, grams: list[Array], mode: int, product: Array, ridge: float) -> Array:
        """The factor of a mode; its Gram matrix takes the place of the old one."""
        others = hadamard([g for m, g in enumerate(grams) if m != mode])
        factor = linalg.ridge_solve(others, product, ridge)
        grams[mode] = factor.mT @ factor
        return factor


def from_slices(tensor: Array, rank: int) -> Fit:
    """The leading rank-1 terms of the SVDs of all slices along the two largest modes.

    The slices are orthogonal to one another, so the error is the energy of the terms left out, and
    with all of them the model is exact.
    """
    energy = linalg.inner(tensor, tensor)
    order = sorted(range(tensor.ndim), key=lambda mode: -tensor.shape[mode])
    rows, columns = sorted(order[:2])
    rest = sorted(order[2:])
    slices = linalg.permuted(tensor, (*rest, rows, columns)).reshape(
        -1, tensor.shape[rows], tensor.shape[columns]
    )
    wide = slices.shape[1] <= slices.shape[2]
    eigen = linalg.eigh(linalg.gram(slices if wide else slices.mT))
    if wide:
        left = eigen.vectors
        right = slices.mT @ left
    else:
        right = eigen.vectors
        left = slices @ right
    strengths = linalg.host((left * left).sum(axis=1) * (right * right).sum(axis=1))
    chosen = np.argsort(-strengths, axis=None, kind="stable")[:rank]
    which, column = np.unravel_index(chosen, strengths.shape)
    factors: list[Array] = [np.empty(0)] * tensor.ndim
    factors[rows] = left[which, :, column].mT
    factors[columns] = right[which, :, column].mT
    sizes = [tensor.shape[mode] for mode in rest]
    places = np.unravel_index(which, sizes) if rest else ()
    for mode, place in zip(rest, places, strict=True):
        factors[mode] = linalg.like(np.eye(tensor.shape[mode])[:, place], tensor)
    left_out = max(energy - float(strengths.ravel()[chosen].sum()), 0.0)
    return Fit(balance(tuple(factors)), math.sqrt(left_out / energy))


def _error(candidate: Fit) -> float:
    return candidate.error
