"""Reduced-rank regression (Izenman, J. Multivariate Anal. 5, 1975), for data-aware decompositions.

A chain's first stages turn the input x (C = E[x xᵀ]) into z = Z x. The best last stage is then the
regression of y = W x on z, in closed form from C. Where the rows of Z are nested, those of a lower
rank leading those of a higher one, a single Cholesky factor gives the error at every rank. Where z
may be chosen freely, the best of a rank is known too (`projection`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from rankfold import linalg
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.calibration.weighted_norm import Metric
from rankfold.decompose.spectrum import Spectrum
from rankfold.linalg import Array, UpdatedIdentity, along_channels, both_sides

_RIDGE, _RIDGE_OF_SINGLE = 1e-10, 1e-6
"""Relative to the mean eigenvalue: above its rounding, far below moments' noise."""
_TIE = 1e-9
"""Relative difference below which two candidates explain the same: what rounding makes of sums."""
_NARROW = 1024
"""Length of a patch up to which a plain basis is tried beside the weighted one. The plain one was
the better in 14 of 306 layers of small trained networks, by 1 % at most, and in none of 15 wider
ones; there it takes half of the time of a decomposition."""
T = TypeVar("T")


class Root(Protocol):
    """Lower triangular L with L Lᵀ = E[z zᵀ]."""

    def solve(self, right: Array, *, transposed: bool = False) -> Array:
        """Return L⁻¹ R, or L^-ᵀ R, for R (groups, n, columns) and the first n of z."""


@dataclass(frozen=True, eq=False)
class DenseRoot:
    """L as a matrix.

    Attributes:
        lower: L (groups, m, m).
    """

    lower: Array

    @staticmethod
    def of(moment: Array) -> DenseRoot:
        """Return the root of a moment (groups, m, m), with a ridge where it is singular."""
        # Collinear rows of z get a ridge, raised until the factorisation succeeds.
        level = linalg.traces(moment) / moment.shape[1]
        ridge = np.where(level > 0.0, level, 1.0)
        loaded, share = moment, _RIDGE_OF_SINGLE if linalg.is_single(moment) else _RIDGE
        while True:
            loaded = linalg.loaded(loaded, share * ridge)
            try:
                return DenseRoot(linalg.cholesky(loaded))
            except np.linalg.LinAlgError:
                share *= 100.0

    def solve(self, right: Array, *, transposed: bool = False) -> Array:
        """Solve with the first rows and columns of L."""
        count = right.shape[1]
        lower = self.lower[:, :count, :count]
        return linalg.solve_triangular(lower, right, transposed=transposed)


class SeparableRoot:
    """L = (L_V ⊗ L_Q) T of (Vᵀ diag(v) V) ⊗ Q + Z Zᵀ, nested by columns of V.

    With Z̃ = (L_V ⊗ L_Q)⁻¹ Z the moment is (L_V ⊗ L_Q) (1 + Z̃ Z̃ᵀ) (L_V ⊗ L_Q)ᵀ, and T is the factor
    of what is in the middle. Nothing has the order of z.

    Args:
        moment: of the inputs.
        basis: V, (groups, channels, rank).
    """

    def __init__(self, moment: SeparableMoment, basis: Array) -> None:
        scaled = basis * moment.variances[:, :, None]
        self._channels = DenseRoot.of(linalg.product(basis.mT, scaled))
        self._positions = DenseRoot.of(moment.positions)
        factor = along_channels(moment.factor.mT, basis).mT  # (V ⊗ 1)ᵀ F
        self._update = UpdatedIdentity(self._separable(factor, transposed=False))

    def solve(self, right: Array, *, transposed: bool = False) -> Array:
        """Solve with the rows and columns of L for the first columns of V, at all positions."""
        if transposed:
            return self._separable(self._update.solve(right, transposed=True), transposed=True)
        return self._update.solve(self._separable(right, transposed=False))

    def _separable(self, right: Array, *, transposed: bool) -> Array:
        """Return (L_V ⊗ L_Q)⁻¹ R, or with its transpose."""
        groups, count, columns = right.shape
        size = self._positions.lower.shape[1]
        rank = count // size
        beside = right.reshape(groups, rank, size * columns)
        beside = self._channels.solve(beside, transposed=transposed)
        split = beside.reshape(groups, rank, size, columns).swapaxes(1, 2)
        beside = split.reshape(groups, size, rank * columns)
        beside = self._positions.solve(beside, transposed=transposed)
        split = beside.reshape(groups, size, rank, columns).swapaxes(1, 2)
        return split.reshape(groups, count, columns)


@dataclass(frozen=True, eq=False)
class Regression:
    """Regression of y = W x on nested z = Z x.

    Attributes:
        explained: (groups, m, out/groups), Q = L⁻¹ E[z yᵀ] with L Lᵀ = E[z zᵀ]: the first n rows
            explain Qᵀ Q of the moment of y.
        root: L.
    """

    explained: Array
    root: Root

    @staticmethod
    def of(metric: Metric, rows: Array, stage: Array) -> Regression:
        """Regress from the rows of W (groups, out, d) and of Z (groups, m, d)."""
        moved = metric.apply_input_moment(stage)
        zz = linalg.product(moved, stage.mT)
        zy = linalg.product(moved, rows.mT)
        return Regression.from_moments(zz, zy)

    @staticmethod
    def at_positions(metric: Metric, moved: Array, basis: Array, positions: int) -> Regression:
        """Regress the outputs of a layer on V ⊗ 1: a basis of a part of its inputs at positions.

        Args:
            metric: of the layer.
            moved: W C (groups, out, d) of the layer's spectrum, or G½ W C for weighted outputs.
            basis: V, (groups, d / positions, rank).
            positions: the part's own positions are the last axis of the inputs.

        Returns:
            The regression on (groups, rank · positions) of z, those of one vector of V together.
        """
        yz = along_channels(moved, basis)  # E[y zᵀ] = W C (V ⊗ 1)
        inputs = metric.inputs
        if not isinstance(inputs, SeparableMoment):
            return Regression.from_moments(both_sides(inputs, basis), yz.mT)
        if positions != inputs.positions.shape[1]:
            return Regression.from_moments(inputs.both_sides(basis), yz.mT)
        root = SeparableRoot(inputs, basis)
        return Regression(root.solve(yz.mT), root)

    @staticmethod
    def from_moments(zz: Array, zy: Array) -> Regression:
        """Regress from E[z zᵀ] (groups, m, m) and E[z yᵀ] (groups, m, out)."""
        # B_n = E[y z_nᵀ] E[z_n z_nᵀ]⁻¹ for the first n of z. With E[z zᵀ] = L Lᵀ, the leading
        # n × n block of L is the factor of E[z_n z_nᵀ], and the first n rows of Q = L⁻¹ E[z yᵀ]
        # depend on z_n alone. So B_n = Q_nᵀ L_n⁻¹, the error falls by tr(Q_nᵀ Q_n), a sum over
        # rows of Q, and nothing is solved again for another n.
        root = DenseRoot.of(zz)
        return Regression(linalg.double(root.solve(zy)), root)

    def solution(self, count: int) -> Array:
        """Return B (groups, out, count) with y ≈ B z for the first `count` of z.

        Args:
            count: of a basis at positions, a multiple of these.
        """
        return self.root.solve(self.explained[:, :count], transposed=True).mT

    def weighted(self, metric: Metric) -> Regression:
        """Return the regression of G½ y."""
        return replace(self, explained=metric.weight_outputs(self.explained.mT).mT)

    def towards(self, directions: Array) -> Regression:
        """Return the regression of Eᵀ y, for E (groups, out/groups, n)."""
        return replace(self, explained=linalg.product(self.explained, directions))

    def worth(self) -> Array:
        """Return by how much the first 1, 2, ... of z lower the squared error, on the host."""
        explained = self.explained
        worth: Array = np.cumsum(linalg.host(linalg.einsum("gno,gno->n", explained, explained)))
        return worth


def tries_plain_basis(spectrum: Spectrum) -> bool:
    """Return whether a layer is narrow enough to try the plain basis beside the weighted one."""
    return bool(spectrum.rows.shape[2] <= _NARROW)


def most_explained(candidates: Iterable[T], worth: Callable[[T], float]) -> T:
    """Return the candidate that explains most of the output.

    No basis of the first stage is the best under every metric, so methods try several. An earlier
    candidate, the simpler one, stays unless a later one beats it by more than rounding: the
    choice, and with it every bit of the result, would else differ between machines.
    """
    iterator = iter(candidates)
    best = next(iterator)
    most: float | None = None
    for candidate in iterator:
        most = worth(best) if most is None else most
        value = worth(candidate)
        if value > most * (1.0 + _TIE):
            best, most = candidate, value
    return best


def projection(spectrum: Spectrum, rank: int) -> tuple[Array, Array]:
    """Return the best factors of a matrix under its metric, Uᵀ G½ W and G^-½ U.

    U are the leading eigenvectors of G½ W C Wᵀ G½. C is never inverted, G is.

    Returns:
        The factor that meets the input, (groups, rank, d), and the other, (groups, out, rank).
    """
    # tr(G (W − Ŵ) C (W − Ŵ)ᵀ) = ‖G½ W C½ − G½ Ŵ C½‖²: the best G½ Ŵ C½ of that rank is
    # U Uᵀ G½ W C½ with U its left singular vectors (Eckart-Young), so that Ŵ = G^-½ U Uᵀ G½ W.
    # C½ drops out because the projection is on the left.
    assert spectrum.metric is not None
    # Uᵀ G½ W as (G½ U)ᵀ W, in float64: with G^-½ U it is W again at full rank.
    basis = spectrum.weighted_leading(rank)
    first = linalg.product(spectrum.metric.spread_outputs(basis).mT, spectrum.rows)
    return first, spectrum.metric.unweight_outputs(basis)
