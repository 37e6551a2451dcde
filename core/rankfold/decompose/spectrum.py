"""Per layer: the Gram matrices of its unfoldings, their eigenvalues and eigenvectors.

Rank selection and candidate errors read eigenvalues, which take a third of the time of eigenpairs;
the first factors of decompositions read eigenvectors. All methods and ranks of a layer share them,
and each is computed at most once. Values are those of the solver for values alone, whether
eigenpairs are at hand or not, as a result may not depend on what was computed before.

The weight is divided by its largest magnitude first, so that squares neither overflow nor vanish at
any scale of the weights.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np

from rankfold.calibration.weighted_norm import Metric, MovedRows
from rankfold.errors import Refused
from rankfold.linalg import (
    Array,
    Eigen,
    basis_of,
    eigenvalues,
    eigh,
    few,
    few_pay,
    inner,
    leading,
    left_eigen,
    namespace,
    over,
    permuted,
    product,
    read_only,
    sampled,
    smaller_gram,
)
from rankfold.ops import Embedding, Op, grouped

Side: TypeAlias = Literal["output", "input", "spatial_rows", "spatial_columns"]
_VISIBLE = 1.0 - 1e-4
"""The share of the energy above which the rest is not told from rounding in float32: sums of
squares are good to about 1e-7 there, which is a thousandth of a rest of 1e-4."""


class Spectrum:
    """Scaled weight of one op, its unfoldings and the eigenpairs of their Gram matrices.

    Args:
        op: the layer.
        metric: the measure of its errors; None for the plain error of the weight.

    Raises:
        Refused: the weight is empty, all zero, or holds NaN or infinite values.

    Attributes:
        metric: the measure of errors, or None.
        scale: the largest magnitude of the weight.
        tensor: (groups, out/groups, in/groups, positions) float64, the weight over `scale`, where
            positions is the product of the kernel sizes.
        energy: the squared Frobenius norm of `tensor`.
    """

    def __init__(self, op: Op, metric: Metric | None = None) -> None:
        weight = op.weight
        self.metric = metric
        self.scale = magnitude(weight)
        self.kernel: tuple[int, ...] = weight.shape[2:]
        scaled = over(grouped(op), self.scale)
        self.tensor: Array = read_only(scaled.reshape(*scaled.shape[:3], -1))
        self.energy = inner(self.tensor, self.tensor)
        self._transposed = isinstance(op, Embedding)
        self._grams: dict[Side, Array] = {}
        self._values: dict[Side, Array] = {}
        self._eigen: dict[Side, Eigen] = {}
        self._weighted_values: Array | None = None

    @property
    def rows(self) -> Array:
        """Matrix that meets the input, (groups, out/groups, d): of a table, its transpose."""
        return self.matrix.mT if self._transposed else self.matrix

    @cached_property
    def moved(self) -> MovedRows:
        """W C, the weight after the second moment of the inputs."""
        assert self.metric is not None
        return self.metric.moved(self.rows)

    @cached_property
    def weighted_rows(self) -> Array:
        """G½ W, (groups, out/groups, d)."""
        assert self.metric is not None
        return read_only(self.metric.weight_outputs(self.rows))

    @cached_property
    def weighted_moved(self) -> Array:
        """G½ W C, (groups, out/groups, d)."""
        assert self.metric is not None
        return read_only(self.metric.weight_outputs(self.moved.rows))

    @cached_property
    def weight_of_all(self) -> float:
        """Squared error of dropping the weight altogether, under the metric if there is one."""
        if self.metric is None:
            return self.energy
        return inner(self.weighted_moved, self.weighted_rows)

    @property
    def weighted_values(self) -> Array:
        """Squared errors of dropping the singular directions of G½ W C½, (groups, k)."""
        if self._weighted_values is None:
            self._weighted_values = read_only(eigenvalues(self._weighted_gram[0]))
        return self._weighted_values

    def weighted_leading(self, rank: int) -> Array:
        """Return the leading left singular vectors (groups, out/groups, rank) of G½ W C½."""
        factor = self._weighted_gram[1]
        vectors = self._weighted_eigen.leading(rank)
        return vectors if factor is None else basis_of(product(factor, vectors))

    @cached_property
    def _weighted_eigen(self) -> Eigen:
        return eigh(self._weighted_gram[0])

    @cached_property
    def _weighted_gram(self) -> tuple[Array, Array | None]:
        """A Aᵀ of A = G½ W C½ as it is or, where A is tall, Aᵀ A and A."""
        assert self.metric is not None
        rows = self.weighted_rows
        if rows.shape[1] <= rows.shape[2]:
            gram = product(self.weighted_moved, rows.mT)
            return 0.5 * (gram + gram.mT), None
        factor = self.metric.times_root(rows)
        return factor.mT @ factor, factor

    @property
    def matrix(self) -> Array:
        """Unfolding (groups, out/groups, in/groups · positions)."""
        groups, out = self.tensor.shape[:2]
        return self.tensor.reshape(groups, out, -1)

    @property
    def input_unfolding(self) -> Array:
        """Unfolding (groups, in/groups, out/groups · positions)."""
        groups, _, into, _ = self.tensor.shape
        return self.tensor.swapaxes(1, 2).reshape(groups, into, -1)

    @property
    def spatial_unfolding(self) -> Array:
        """Matricisation (groups, out/groups · kw, in/groups · kh) of a 2-d kernel."""
        groups, out, into, _ = self.tensor.shape
        kh, kw = self.kernel
        split = self.tensor.reshape(groups, out, into, kh, kw)
        return permuted(split, (0, 1, 4, 2, 3)).reshape(groups, out * kw, into * kh)

    def factors(
        self, rank: int, rng: np.random.Generator, *, exact: bool = False
    ) -> tuple[Array, Array, float, str]:
        """Return the truncated singular value decomposition of `matrix`, sampled or exact.

        Args:
            rank: 1 to the smaller side.
            rng: draws the start of a sample.
            exact: never to sample.

        Returns:
            Factors (groups, out/groups, rank) and (groups, rank, d), how much of `energy` their
            product keeps, and how they were found where that matters.
        """
        # Three ways lead to the leading singular vectors, for m × n with p = min(m, n):
        #   sampled, O(m n r): power iteration on about 1.15 r random columns, in float32;
        #   few eigenvectors of the Gram matrix, O(m n p) for it, O(p³) to make it tridiagonal and
        #     O(p² r) for them;
        #   all of them, O(m n p) and some times O(p³), which later calls share.
        # The choice rests on shape, rank and `exact` alone, never on what is cached already: a
        # plan carried out later, or by an executor, starts with an empty cache and must give the
        # same factors. That the sample was good enough is the only question put to values: the
        # error is read off as E − ‖right‖², whose rounding in float32 is about 1e-7 · E. A
        # sample that leaves out less than (1 − _VISIBLE) · E would make it mostly noise, and is
        # dropped for the exact way.
        matrix = self.matrix
        if not exact and few(rank, min(matrix.shape[1:])):
            left, right = sampled(matrix, rank, rng)
            kept = inner(right, right)
            if kept < _VISIBLE * self.energy:
                return left, right, kept, "subspace found by sampling"
        side: Side = "output" if matrix.shape[1] <= matrix.shape[2] else "input"
        return *self.projected(side, rank), ""

    def projected(self, side: Side, rank: int) -> tuple[Array, Array, float]:
        """Project a matrix on the leading singular vectors of one of its sides.

        Args:
            side: "output" or "input" of `matrix`, "spatial_rows" or "spatial_columns" of
                `spatial_unfolding`.
            rank: 1 to the smaller side of the matrix.

        Returns:
            The left factor (groups, m, rank), the right one (groups, rank, n), and how much of
            `energy` their product keeps.
        """
        basis = self.leading(side, rank)
        matrix = self.spatial_unfolding if side.startswith("spatial") else self.matrix
        if side in ("output", "spatial_rows"):
            right = basis.mT @ matrix
            return basis, right, inner(right, right)
        left = matrix @ basis
        return left, basis.mT, inner(left, left)

    def leading(self, side: Side, rank: int) -> Array:
        """Return the leading left singular vectors (groups, n, rank) of an unfolding.

        Args:
            side: which unfolding.
            rank: 1 to the smaller side of the unfolding.
        """
        unfolding = self._unfolding(side)
        return (
            leading(unfolding, rank, self._gram(side))
            if few_pay(unfolding, rank)
            else self.eigen(side).leading(rank)
        )

    def values(self, side: Side) -> Array:
        """Return the squared singular values (groups, k) of an unfolding, k its smaller side."""
        if side not in self._values:
            self._values[side] = read_only(eigenvalues(self._gram(side)))
        return self._values[side]

    def name_of(self, side: Side) -> str:
        """Return the name of an unfolding; both sides of a matrix are the weight."""
        if side.startswith("spatial"):
            return "spatial"
        return "weight" if self.tensor.shape[3] == 1 else side

    def computed(self) -> dict[str, tuple[tuple[int, int], Array]]:
        """Return the sides and the squared singular values of what was asked for, by name."""
        known = {
            self.name_of(side): (self._sides_of(side), values)
            for side, values in self._values.items()
        }
        if self._weighted_values is not None:
            rows, columns = self.rows.shape[1:]
            known["weighted"] = ((rows, columns), self._weighted_values)
        return known

    def _sides_of(self, side: Side) -> tuple[int, int]:
        # From shapes alone: a spatial unfolding is a copy of the weight.
        _, out, into, positions = self.tensor.shape
        if side == "output":
            return out, into * positions
        if side == "input":
            return into, out * positions
        kh, kw = self.kernel
        return (out * kw, into * kh) if side == "spatial_rows" else (into * kh, out * kw)

    def eigen(self, side: Side) -> Eigen:
        """Return the eigenpairs of the Gram matrices of an unfolding."""
        if side not in self._eigen:
            self._eigen[side] = left_eigen(self._unfolding(side), self._gram(side))
        return self._eigen[side]

    def _gram(self, side: Side) -> Array:
        # Of n × m with n ≤ m it has n² elements, no more than the weight; all sides of a k × k
        # kernel together have no more than 1 + 2 / k² times that.
        if side not in self._grams:
            self._grams[side] = smaller_gram(self._unfolding(side))
        return self._grams[side]

    def _unfolding(self, side: Side) -> Array:
        if side == "output":
            return self.matrix
        if side == "input":
            return self.input_unfolding
        unfolding = self.spatial_unfolding
        return unfolding if side == "spatial_rows" else unfolding.mT

    def relative_error(self, kept: float) -> float:
        """Relative error ‖W − Ŵ‖ / ‖W‖ of a projection that keeps that much of `energy`."""
        return math.sqrt(max(0.0, 1.0 - kept / self.energy))

    def distance(self, rows: Array) -> float:
        """Relative error ‖W − Ŵ‖ / ‖W‖ of rows Ŵ (groups, out/groups, d), scaled as `tensor`."""
        difference = rows - self.rows
        return math.sqrt(inner(difference, difference) / self.energy)


def magnitude(weight: Array) -> float:
    """Return the largest magnitude of a weight that can be decomposed.

    Raises:
        Refused: the weight is empty, all zero, or holds NaN or infinite values.
    """
    size = math.prod(weight.shape)
    if size == 0:
        raise Refused(f"the weight of shape {tuple(weight.shape)} is empty")
    largest = max(float(weight.max()), -float(weight.min()))
    if not math.isfinite(largest):
        bad = size - int(namespace(weight).isfinite(weight).sum())
        raise Refused(f"the weight has {bad} NaN or infinite values of {size}")
    if largest == 0.0:
        raise Refused("the weight is all zero")
    return largest
