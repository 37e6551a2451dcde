"""Fit a CP model to a kernel by ridge-regularised alternating least squares.

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
* One start is algebraic (`cp_pencil`): it is the model of a tensor that is of that rank, or all but
  is, where sweeps from elsewhere end in local minima. It is dropped early where it cannot be.
* Sweeps over large tensors run in float32 until the error gets too small to be seen in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from rankfold import linalg
from rankfold.decompose.cp_pencil import from_pencil
from rankfold.decompose.cp_starts import from_singular_vectors, from_slices
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
"""Relative to the mean eigenvalue of the normal equations, as all ridges here: terms whose Gram
matrix has smaller eigenvalues cancel in all but a thousandth of their energy."""
_LOWER_RIDGES = (1e-5, 1e-7)
"""Tried at the end, a hundredth each: the bias of a ridge is in proportion to it."""
_MOST_GROWTH = 1.1
"""Of the summed squared norms of the terms: where they grow more, terms have begun to cancel."""
_SMALL = 0.05
"""Relative error below which the ridge is much of what is left."""
_LARGE = 2_000_000
"""Elements times rank from which GEMMs, and not the calls, take the time of a sweep."""
MOST_SENSITIVE = 100.0
"""What `relative_sensitivity` may be; a stronger ridge is taken where it is more. It is about one
per mode without cancellation, and hundreds to thousands for plain least squares."""
_STRONGER_RIDGES = (1e-2, 1e-1)
"""Tried in turn while a model is too sensitive: ten and a hundred times the usual one. Differences
of nearly equal terms, which the pencil finds exactly, have sensitivities of up to 1e8; the first
one sufficed for all of 43 such tensors."""
_TOLERANCE = 1e-6
"""Relative change of the error between sweeps at which it counts as settled."""
_CHEAP = 20_000_000
"""Multiplications of a sweep, the unit of effort: some 4 ms at 10 GFLOP/s."""
_MOMENTUM = 0.8
"""Of the first sweep."""
_GROWTH = 1.5
"""Of the momentum per sweep that lowers the error; one halving outweighs it."""
_PRECISE = 1e-2
"""Relative error below which sweeps run in float64: its square is 1e-4 of the energy, which sums in
float32 tell to 1e-7 of it, and so to a thousandth."""
_EXACT = 1e-3
"""Relative error of a tensor that is of the rank but for the rounding of half precision, 2^-11."""


def full_rank(shape: tuple[int, ...]) -> int:
    """Return a rank at which every tensor of that shape has an exact CP model.

    All fibres along the largest mode are the terms: each is the fibre times unit vectors.
    """
    return math.prod(shape) // max(shape)


def fit(tensor: Array, rank: int, rng: np.random.Generator) -> Fit:
    """Fit a CP model to a tensor; it is finite for every finite tensor.

    Args:
        tensor: (out, in, *kernel), float64, at least two modes, not all zero.
        rank: 1 to `full_rank(tensor.shape)`; at the latter the model is exact.
        rng: draws the further starts that small tensors get.

    Returns:
        Balanced factors and the relative error.
    """
    if rank >= full_rank(tensor.shape) or tensor.ndim == 2:
        return from_slices(tensor, rank, rng)
    bases = [
        linalg.leading(unfold(tensor, mode)[None], rank)[0] if rank < tensor.shape[mode] else None
        for mode in (0, 1)
    ]
    core = tensor
    for mode, basis in enumerate(bases):
        if basis is not None:
            core = multiply(core, basis.mT, mode)
    # Starts are compared after a few sweeps each, and only the best is swept to the end. The slice
    # SVDs make large tensors deterministic and have no cancelling terms; the pencil is the model
    # itself where the tensor is of that rank, and noise amplified by ill-conditioned eigenvectors
    # where it is not; singular vectors of the unfoldings and random starts are for tensors so small
    # that they cost nothing.
    effort = _Effort.of(core, rank)
    algebraic = from_pencil(core, rank, merge=effort.starts > 1)
    starts = [] if algebraic is None else [_measured(core, algebraic)]
    exact = any(start.error < _EXACT for start in starts)
    ridge = _LOWER_RIDGES[-1] if exact else RIDGE
    if not exact:
        # An infinite error is that of a start which no sweep has seen. The pencil may fit better
        # than any ridge solution, by huge terms that cancel, and sweeps keep their best model: with
        # its own error it would stay the best. So it has to go through the ridge first.
        starts = [from_slices(core, rank, rng), *(Fit(start.factors, math.inf) for start in starts)]
        for _ in range(effort.starts - len(starts)):
            drawn = (rng.standard_normal((size, rank)) for size in core.shape)
            starts.append(Fit(tuple(linalg.like(factor, core) for factor in drawn), math.inf))
        if effort.starts > 1:
            starts.append(Fit(from_singular_vectors(core, rank, rng), math.inf))
        if len(starts) > 1:
            starts = [_als(core, start, effort.trial_sweeps, RIDGE) for start in starts]
    model = _als(core, min(starts, key=attrgetter("error")), effort.sweeps, ridge)
    last_sweeps = _Effort.of(tensor, rank).last_sweeps
    if any(basis is not None for basis in bases):
        factors = list(model.factors)
        for mode, basis in enumerate(bases):
            if basis is not None:
                factors[mode] = basis @ factors[mode]
        # ‖T − T̂‖² = ‖T‖² − ‖core‖² + ‖core − model‖² for T̂ within the two bases. They are the
        # best for the unfoldings, not for a CP model, so that sweeps over T itself gain a little;
        # the error on the core is not that of T, and counts as unknown.
        expanded = tuple(factors)
        start = _measured(tensor, expanded) if exact else Fit(expanded, math.inf)
        model = _als(tensor, start, last_sweeps, ridge)
    cheap = effort.starts > 1
    if cheap or model.error < _SMALL:
        model = _with_less_ridge(tensor, model, last_sweeps)
    if cheap:
        model = min(model, from_slices(tensor, rank, rng), key=attrgetter("error"))
    return _with_bounded_sensitivity(tensor, Fit(balance(model.factors), model.error), last_sweeps)


def _measured(tensor: Array, factors: tuple[Array, ...]) -> Fit:
    """Return a model with its error, from the dense tensor that it stands for."""
    difference = factors[0] @ khatri_rao(factors[1:]).mT - tensor.reshape(tensor.shape[0], -1)
    squared = linalg.inner(difference, difference) / linalg.inner(tensor, tensor)
    return Fit(factors, math.sqrt(squared))


def _with_bounded_sensitivity(tensor: Array, model: Fit, sweeps: int) -> Fit:
    """Refit a model under a stronger ridge as long as it is too sensitive."""
    energy = linalg.inner(tensor, tensor)
    for ridge in _STRONGER_RIDGES:
        if relative_sensitivity(model.factors, energy) <= MOST_SENSITIVE:
            break
        # the old error, lower than what this ridge reaches, would keep the old model as the best
        refitted = _als(tensor, Fit(model.factors, math.inf), sweeps, ridge)
        model = Fit(balance(refitted.factors), refitted.error)
    return model


def _with_less_ridge(tensor: Array, model: Fit, sweeps: int) -> Fit:
    """Refit a model under lower ridges, unless its terms grow."""
    most = _MOST_GROWTH * sum_of_squares(model.factors)
    for ridge in _LOWER_RIDGES:
        closer = _als(tensor, model, sweeps, ridge)
        if sum_of_squares(closer.factors) > most:
            break
        model = closer
    return model


@dataclass(frozen=True)
class _Effort:
    """Numbers of starts and of sweeps: local minima are cheap to avoid where sweeps are cheap.

    Attributes:
        starts: how many, the algebraic one and that from slices included; where there are several,
            singular vectors are one more.
        trial_sweeps: of each start, before the best is chosen.
        sweeps: of the best, at most.
        last_sweeps: over the full tensor, and at each other ridge, at most.
    """

    starts: int
    trial_sweeps: int
    sweeps: int
    last_sweeps: int

    @staticmethod
    def of(tensor: Array, rank: int) -> _Effort:
        # A sweep is two GEMMs of prod(shape) · rank multiplications; the contractions of what
        # they give, and memory traffic, about double that. Every limit is a number of
        # multiplications over this, between a least number of sweeps, below which ALS is hardly
        # off its start, and a most, beyond which another start is worth more. 20 trial sweeps for
        # 8 starts stay below the 190 that follow.
        work = 4 * math.prod(tensor.shape) * rank
        starts = max(1, min(8, _CHEAP // (3 * work)))
        return _Effort(
            starts=starts,
            trial_sweeps=20 if starts > 1 else 2,  # enough to tell an algebraic start from none
            sweeps=max(33, min(190, 100 * _CHEAP // work)),
            last_sweeps=max(6, min(60, 50 * _CHEAP // work)),
        )


def _als(tensor: Array, start: Fit, sweeps: int, ridge: float) -> Fit:
    """Sweep from a start until the error settles, and return the best model seen.

    Args:
        tensor: (out, in, *kernel), float64.
        start: factors with their error; `math.inf` where it must not count as a result.
        sweeps: at most.
        ridge: relative to the mean eigenvalue of the normal equations.
    """
    # ALS is a fixed-point map x ← F(x) whose error falls by a constant factor a sweep, one close
    # to 1 in the swamps that CP models are known for: steps x_k − x_{k−1} hardly change there.
    # A sweep therefore starts ahead of the last factors, as in Nesterov's method,
    #     y = x_k + β (x_k − x_{k−1}),   x_{k+1} = F(y).
    # F(y) may be worse than x_k where the steps turn. The momentum β is halved then and the sweep
    # done again from x_k itself (a restart), which is plain ALS. β grows while it serves.
    # `not ... <=` also restarts where the error is NaN.
    energy = linalg.inner(tensor, tensor)
    error, best = start.error, start
    large = math.prod(tensor.shape) * start.factors[0].shape[1] > _LARGE
    coarse = large and ridge == RIDGE and error > _PRECISE
    sweeper = _Sweeper(linalg.single(tensor) if coarse else tensor, energy)
    previous = current = sweeper.cast(start.factors)
    momentum = _MOMENTUM
    for sweep in range(sweeps):
        if error <= _PRECISE and sweeper.coarse:
            sweeper = _Sweeper(tensor, energy)
            previous, current = sweeper.cast(previous), sweeper.cast(current)
        ahead = [f + momentum * (f - old) for f, old in zip(current, previous, strict=True)]
        new, new_error = sweeper.swept(ahead, ridge)
        if not new_error <= error:
            momentum *= 0.5
            new, new_error = sweeper.swept(current, ridge)
        else:
            momentum = min(_most_momentum(sweep), momentum * _GROWTH)
        if not math.isfinite(new_error):
            break
        previous, current = current, new
        if new_error < best.error:
            best = Fit(tuple(new), new_error)
        if abs(error - new_error) < _TOLERANCE * new_error:
            break
        error = new_error
    return Fit(tuple(linalg.double(factor) for factor in best.factors), best.error)


def _most_momentum(sweep: int) -> float:
    # Steps turn often at first and hardly later, so that what serves most grows with the sweeps, as
    # in Nesterov's method; below 1, or differences would add up without end. Against 0.98
    # throughout, errors on six kernels were 0.6 % lower after 30 sweeps, 0.3 % after 100, 0.1 %
    # after 200; slopes and starts between 6 and 12 were alike.
    return 1.0 - 1.0 / (10.0 + 0.2 * sweep)


class _Sweeper:
    """A tensor laid out for sweeps, in its own dtype.

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
        """Convert factors to the dtype of the tensor."""
        return [linalg.cast(factor, self._tensor.dtype) for factor in factors]

    def swept(self, factors: Sequence[Array], ridge: float) -> tuple[list[Array], float]:
        """Sweep once over all modes, and return the factors and their relative error.

        Args:
            factors: one per mode, (size, rank).
            ridge: relative to the mean eigenvalue of the normal equations.
        """
        # The factor of mode n solves A_n (H_n + ridge) = M_n with the MTTKRP
        # M_n = T_(n) (⊙_{m≠n} A_m) and H_n = ∗_{m≠n} A_mᵀ A_m. `half` contracts the tensor with b
        # alone; all M_n but that of b follow from it by small sums over the kernel, since b does
        # not change until the end. The error needs no pass over the tensor: with M of the last
        # mode and its factor b, ⟨T, T̂⟩ = ⟨M, b⟩ and ‖T̂‖² = Σ (∗_m A_mᵀ A_m).
        einsum = linalg.namespace(self._tensor).einsum
        _, b, *kernel = factors
        rank = b.shape[1]
        others = [f.mT @ f for f in factors[1:]]
        grams = [others[0], *others]  # the first is replaced before it is read

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
        """Solve for the factor of a mode, and replace its Gram matrix in `grams`."""
        others = hadamard([g for m, g in enumerate(grams) if m != mode])
        factor = linalg.ridge_solve(others, product, ridge)
        grams[mode] = factor.mT @ factor
        return factor
