"""Second moment of wide patches: a separable one, and a matrix of low rank.

C = diag(v) ⊗ Q + F Fᵀ over channels and positions of the kernel. F holds the directions of most
energy; what remains is taken for uncorrelated between channels, and for alike between positions in
all of them. Nothing of it, and nothing that is done with it, has the square of the patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankfold import linalg
from rankfold.calibration.shrinkage import oas_shrinkage, shrunken
from rankfold.linalg import Array

_TINY = 1e-300
"""Stands for a variance of 0 where it is divided by."""


@dataclass(frozen=True, eq=False)
class SeparableMoment:
    """C = diag(v) ⊗ Q + F Fᵀ, of order d = channels · positions, in float64.

    Attributes:
        variances: v, (groups, channels).
        positions: Q, (groups, positions, positions).
        factor: F, (groups, d, k), channels first.
    """

    variances: Array
    positions: Array
    factor: Array

    def __post_init__(self) -> None:
        for name in ("variances", "positions", "factor"):
            object.__setattr__(self, name, linalg.read_only(getattr(self, name)))

    @classmethod
    def identity(cls, shape: tuple[int, int, int], array: Array) -> SeparableMoment:
        """Return the identity for (groups, channels, positions), made where an array is."""
        groups, channels, positions = shape
        ones = linalg.like(np.ones((groups, channels)), array)
        eye = linalg.like(np.tile(np.eye(positions), (groups, 1, 1)), array)
        factor = linalg.like(np.zeros((groups, channels * positions, 1)), array)
        return cls(ones, eye, factor)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (groups, d, d) of C as a matrix."""
        groups, order = self.factor.shape[:2]
        return groups, order, order

    @property
    def diagonal(self) -> Array:
        """Diagonal of C, (groups, d)."""
        positions = linalg.diagonals(self.positions)
        base = self.variances[:, :, None] * positions[:, None, :]
        diagonal: Array = base.reshape(len(base), -1) + (self.factor * self.factor).sum(2)
        return diagonal

    @property
    def channels(self) -> Array:
        """Second moment of the channels, (groups, channels, channels), a mean over positions."""
        groups, count = self.variances.shape
        size = self.positions.shape[1]
        level = linalg.traces(self.positions) / size
        base = linalg.diagonal_matrices(linalg.scaled(self.variances, level, 0))
        # In float32: it is a mean over many positions, and a basis of channels is made of it.
        factor = linalg.single(self.factor).reshape(groups, count, -1)
        moment: Array = base + linalg.double(linalg.product(factor, factor.mT)) / size
        return moment

    @property
    def is_finite(self) -> bool:
        """Whether all values are finite."""
        return all(map(linalg.is_finite, (self.variances, self.positions, self.factor)))

    def of_groups(self, groups: Sequence[int]) -> SeparableMoment:
        """Select some of the groups."""
        return SeparableMoment(
            linalg.selected(self.variances, groups),
            linalg.selected(self.positions, groups),
            linalg.selected(self.factor, groups),
        )

    def like(self, array: Array) -> SeparableMoment:
        """Return it in float64, in the library and on the device of an array."""
        variances, positions, factor = (
            linalg.double(linalg.like(part, array))
            for part in (self.variances, self.positions, self.factor)
        )
        return SeparableMoment(variances, positions, factor)

    def over(self, unit: float) -> SeparableMoment:
        """Return C over a number."""
        return SeparableMoment(self.variances / unit, self.positions, self.factor / unit**0.5)

    def with_mean(self, mean: Array) -> SeparableMoment:
        """Return C + μ μᵀ for a mean μ (groups, d)."""
        factor = linalg.concatenated((self.factor, mean[:, :, None]), 2)
        return SeparableMoment(self.variances, self.positions, factor)

    def products(self, rows: Array) -> Array:
        """Return A C for A (groups, n, d)."""
        low = linalg.product(linalg.product(rows, self.factor), self.factor.mT)
        return self._separable_products(rows) + low

    def root_products(self, rows: Array) -> Array:
        """Return A R for A (groups, n, d), where R Rᵀ = C."""
        groups, count, _ = rows.shape
        split = rows.reshape(groups, count, self.variances.shape[1], -1)
        half = split * linalg.root(self.variances)[:, None, :, None]
        eigen = linalg.eigh(self.positions)
        root = linalg.scaled(eigen.vectors, np.sqrt(eigen.values), 2)
        half = linalg.product(half, root[:, None])
        return linalg.concatenated(
            (half.reshape(groups, count, -1), linalg.product(rows, self.factor)), 2
        )

    def of_columns(self, columns: int) -> SeparableMoment:
        """Return the mean, over the columns of a kernel, of the moment of what each one meets.

        Args:
            columns: the last axis of the positions.

        Returns:
            A moment of order d / columns, over channels and the other axes.
        """
        groups, count = self.variances.shape
        size = self.positions.shape[1] // columns
        split = self.positions.reshape(groups, size, columns, size, columns)
        positions = linalg.contracted(split, 2, 4) / columns
        # Each column's part of F gives k columns of the new one.
        factor = self.factor.reshape(groups, count * size, -1) / columns**0.5
        return SeparableMoment(self.variances, positions, factor)

    def both_sides(self, basis: Array) -> Array:
        """Return (V ⊗ 1)ᵀ C (V ⊗ 1) for V (groups, d / n, rank), n the last positions.

        Args:
            basis: V, of the channels and the first axes of the kernel.
        """
        groups, count = self.variances.shape
        part, rank = basis.shape[1:]
        size = part // count
        columns = self.positions.shape[1] // size
        positions = self.positions.reshape(groups, size, columns, size, columns)
        split = basis.reshape(groups, count, size, rank)
        scaled = split * self.variances[:, :, None, None]
        rows = []
        for first in range(columns):
            # Vᵀ (diag(v) ⊗ Q_fs) V for two columns f and s of the kernel.
            blocks = []
            for second in range(columns):
                moved = linalg.product(positions[:, None, :, first, :, second], scaled)
                blocks.append(linalg.product(basis.mT, moved.reshape(groups, part, rank)))
            rows.append(linalg.permuted(linalg.stacked(blocks), (1, 2, 3, 0)))
        base = linalg.permuted(linalg.stacked(rows), (1, 2, 0, 3, 4))
        base = base.reshape(groups, rank * columns, rank * columns)
        factor = linalg.along_channels(self.factor.mT, basis)
        moment: Array = base + linalg.product(factor.mT, factor)
        return moment

    def shrunken(self, samples: int) -> SeparableMoment:
        """Return C of few samples, shrunk towards what of it is separable.

        Args:
            samples: how many it is the mean of.
        """
        # The oracle of `oas_shrinkage` for another target: T = t B, with B = diag(v) ⊗ Q and t
        # such that the traces agree, in place of the identity. The numerator is the scatter of S
        # about the true moment as there, the spread is ‖S − T‖² = ‖F Fᵀ − a B‖² with
        # a = ‖F‖² / tr B. So F loses a share of its energy to B; v and Q, of which each number is
        # the mean over many positions or channels, are shrunk towards the identity in turn.
        traces = linalg.host(self.variances.sum(axis=1)) * linalg.traces(self.positions)
        norms = linalg.squares(self.variances) * linalg.squares(self.positions)
        low = linalg.squares(self.factor)
        gram = linalg.squares(linalg.product(self.factor.mT, self.factor))
        between = self._separable_products(self.factor.mT) * self.factor.mT
        crossed = linalg.host(between.sum(axis=2).sum(axis=1))
        ratio = low / np.maximum(traces, _TINY)
        spread = gram - 2.0 * ratio * crossed + ratio * ratio * norms
        total = traces + low
        scatter = (norms + 2.0 * crossed + gram + total * total) / (samples + 1.0)
        shares = np.where(spread > 0.0, np.minimum(1.0, scatter / np.maximum(spread, _TINY)), 1.0)
        shares = np.where(traces > 0.0, shares, 0.0)
        variances = linalg.scaled(self.variances, 1.0 + shares * ratio, 0)
        return SeparableMoment(
            shrunken(variances, oas_shrinkage(variances, samples)),
            shrunken(self.positions, oas_shrinkage(self.positions, samples)),
            linalg.scaled(self.factor, np.sqrt(1.0 - shares), 0),
        )

    def _separable_products(self, rows: Array) -> Array:
        groups, count, order = rows.shape
        split = rows.reshape(groups, count, self.variances.shape[1], -1)
        moved = linalg.product(split * self.variances[:, None, :, None], self.positions[:, None])
        return moved.reshape(groups, count, order)
