"""Sums of products over rows, in float64; in float32 where they are wide."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rankfold.linalg import Array
from rankfold.plugins import RegressionSums, RelativeDistance, regression_sums
from rankfold_onnx.patches import working

_WIDE = 1024
"""Order from which sums are kept in float32: in float64 those of a wide layer take gigabytes."""


class Sum:
    """Sum of arrays of one shape."""

    def __init__(self) -> None:
        self._total: Array | None = None

    def add(self, term: Array) -> None:
        """Add an array."""
        if self._total is None:
            wide = term.shape[-1] > _WIDE
            self._total = np.zeros(term.shape, np.float32 if wide else np.float64)
        self._total += term

    @property
    def is_finite(self) -> bool:
        """True if all values are finite."""
        return self._total is None or bool(np.isfinite(self._total).all())

    def over(self, count: float) -> Array:
        """Return the sum over a number."""
        assert self._total is not None
        mean: Array = self._total / count
        return mean.astype(self._total.dtype, copy=False)


class OutputSums:
    """Sums of a `RegressionSums`.

    Args:
        held_out: whether the rows are held-out ones.
    """

    def __init__(self, *, held_out: bool) -> None:
        names = ("xx", "yx", "x", "y", "square", *(["yy"] if held_out else []))
        self._sums = {name: Sum() for name in names}
        self._count = 0

    def add(self, x: Array, y: Array) -> None:
        """Add rows (rows, groups, d) of inputs and (rows, groups, out/groups) of outputs."""
        if not len(x):
            return
        self._count += len(x)
        terms: dict[str, Callable[[], Array]] = {
            "xx": lambda: product(x, x),
            "yx": lambda: product(y, x),
            "yy": lambda: product(y, y),
            "x": lambda: x.sum(0, dtype=np.float64),
            "y": lambda: y.sum(0, dtype=np.float64),
            "square": lambda: squares(y).sum(axis=1),
        }
        for name, total in self._sums.items():
            total.add(terms[name]())

    def regression_sums(self) -> RegressionSums | None:
        """Return the sums so far; None where there are none, or where they are not finite."""
        if not self._count:
            return None
        sums = {name: total.over(1.0) for name, total in self._sums.items()}
        return regression_sums(sums, self._count)


def product(a: Array, b: Array) -> Array:
    """Return Σ a bᵀ over rows: (groups, a, b) of (rows, groups, a) and (rows, groups, b)."""
    total: Array = a.transpose(1, 2, 0) @ b.transpose(1, 0, 2)
    return total


def squares(rows: Array) -> Array:
    """Return Σ a² over rows: (groups, a) of (rows, groups, a)."""
    total: Array = np.einsum("rga,rga->ga", rows, rows, dtype=np.float64)
    return total


def projected(rows: Array, basis: Array | None) -> Array:
    """Return rows (rows, groups, d) as (V ⊗ 1)ᵀ x; see `rankfold.plugins.LayerVisitor`."""
    if basis is None:
        return rows
    count, groups, _ = rows.shape
    v = np.asarray(basis).astype(rows.dtype)
    split = rows.reshape(count, groups, v.shape[1], -1)
    mixed = np.einsum("rgnp,gnk->rgkp", split, v, optimize=True)
    return np.ascontiguousarray(mixed).reshape(count, groups, -1)


def add_distance(total: RelativeDistance, y: Array, other: Array) -> None:
    """Add the distance of an output and of what stands in its place."""
    y, other = working(y), working(other)
    difference = (y - other).reshape(-1).astype(np.float64)
    whole = y.reshape(-1).astype(np.float64)
    total.add(float(difference @ difference), float(whole @ whole))
