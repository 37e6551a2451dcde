"""Sums of products over rows, made on the model's device.

They are added up there, too, if decompositions compute there (`stays`), and else on the CPU.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from rankfold.calibration.accumulators import RelativeDistance, regression_sums
from rankfold.calibration.array_store import ArrayStore, StoredRows, StoredSum
from rankfold.calibration.moments import RegressionSums
from rankfold.linalg import Array, like
from rankfold_torch.layers.stock import stays, to_array

_LARGE = 1024
"""Order from which a sum is kept in float32."""
_BLOCKED = 256
"""Order from which a square is made in blocks, in two thirds of the time, and of many rows."""
# Of the columns of a wide square: with k of them, 1/2 + 1/2k of the products are made.
_BLOCKS = 5
# Numbers that are squared at a time: 16 MiB in float32, beside the gradients at 50,000 logits.
_SQUARES = 2**22
_STRETCH = 4096
"""Numbers whose squares are summed in float32: that is exact to some 1e-6."""
_LEAST = 1e-25
"""A sum of squares below which those of a billion numbers may have vanished in float32."""


class Sum:
    """Sum of tensors of one shape, in float64; in float32 where its last axis is long."""

    def __init__(self) -> None:
        self._total: torch.Tensor | None = None

    def add(self, term: torch.Tensor) -> None:
        """Add a tensor."""
        self._total = _added(self._total, term)

    @property
    def empty(self) -> bool:
        """True if nothing was added."""
        return self._total is None

    def over(self, count: float) -> Array:
        """Return the sum over a number, as an array."""
        assert self._total is not None
        return to_array(self._total / count)


class TensorSum:
    """Sum as `Sum` is, in a store; on a device where decompositions compute, in its memory.

    Args:
        store: keeps it.
    """

    def __init__(self, store: ArrayStore) -> None:
        self._sum = StoredSum(store)
        self._staying: torch.Tensor | None = None

    def add(self, term: torch.Tensor) -> None:
        """Add a tensor."""
        if self._staying is not None or (self._sum.empty and stays(term.device)):
            self._staying = _added(self._staying, term)
            return
        # The precision is converted where it is added, without a copy of a large term.
        dtype = np.float64 if _dtype_of_sum(term) == torch.float64 else np.float32
        self._sum.add(term.detach().to("cpu").numpy(), dtype)

    @property
    def empty(self) -> bool:
        """True if nothing was added."""
        return self._staying is None and self._sum.empty

    @property
    def is_finite(self) -> bool:
        """True if all values are finite."""
        if self._staying is not None:
            return bool(self._staying.isfinite().all())
        return self._sum.is_finite

    def over(self, count: float) -> Array:
        """Return the sum over a number, read anew each time."""
        if self._staying is None:
            return self._sum.over(count)
        mean: Any = self._staying / count
        return mean  # type: ignore[no-any-return]  # a tensor stands for an array


class SquareSum:
    """Sum of x xᵀ over rows x, as `TensorSum`, for rows that come a few at a time.

    Where they are wide, they wait until there are as many as columns: a product of fewer costs more
    for each, and no more than adding it to a sum that lies in a file.

    Args:
        store: keeps the sum and the rows.
    """

    def __init__(self, store: ArrayStore) -> None:
        self._store = store
        self._sum = TensorSum(store)
        self._rows: StoredRows | None = None

    def add(self, rows: torch.Tensor) -> None:
        """Add rows (rows, groups, d)."""
        count, groups, width = rows.shape
        if count >= width or width < _BLOCKED or groups > 1 or not _waits(rows):
            self._sum.add(product(rows, rows))
            return
        if self._rows is None:
            self._rows = self._store.reserve(width, width, np.float32)
        if self._rows.waiting + count > width:
            self._settle()
        self._rows.add(rows[:, 0].detach().numpy())

    @property
    def empty(self) -> bool:
        """True if nothing was added."""
        return self._settle().empty

    @property
    def is_finite(self) -> bool:
        """True if all values are finite."""
        return self._settle().is_finite

    def over(self, count: float) -> Array:
        """Return the sum over a number, read anew each time."""
        return self._settle().over(count)

    def _settle(self) -> TensorSum:
        """Add the rows that wait, and return the sum."""
        if self._rows is not None and self._rows.waiting:
            rows = torch.from_numpy(self._rows.take())[:, None]
            self._sum.add(product(rows, rows))
        return self._sum


def _waits(rows: torch.Tensor) -> bool:
    # The store is the host's, and keeps rows in the precision that nearly all come in.
    return rows.dtype == torch.float32 and rows.device.type == "cpu" and not stays(rows.device)


class OutputSums:
    """Sums of a `RegressionSums`; rows are held until there are enough for a large product.

    Args:
        held_out: whether the rows are held-out ones.
    """

    def __init__(self, *, held_out: bool) -> None:
        names = ("xx", "yx", "x", "y", "square", *(["yy"] if held_out else []))
        self._sums: dict[str, Sum] = {name: Sum() for name in names}
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._waiting_rows = 0
        self.count = 0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add rows (rows, groups, d) of inputs and (rows, groups, out/groups) of outputs."""
        if not len(x):
            return
        self.count += len(x)
        self._waiting.append((x, y.to(x)))
        self._waiting_rows += len(x)
        # As many rows as columns: then the product costs as much as adding it up, or more.
        if self._waiting_rows >= x.shape[2]:
            self._add_held()

    def regression_sums(self) -> RegressionSums | None:
        """Return the sums so far; None where there are none, or where they are not finite."""
        if self._waiting:
            self._add_held()
        if not self.count:
            return None
        sums = {name: total.over(1.0) for name, total in self._sums.items()}
        return regression_sums(sums, self.count)

    def _add_held(self) -> None:
        x, y = (torch.cat(rows) for rows in zip(*self._waiting, strict=True))
        self._waiting, self._waiting_rows = [], 0
        terms = {
            "xx": lambda: product(x, x),
            "yx": lambda: product(y, x),
            "yy": lambda: product(y, y),
            "x": lambda: x.sum(0),
            "y": lambda: y.sum(0),
            "square": lambda: squares(y).sum(1),
        }
        for name, total in self._sums.items():
            total.add(terms[name]())


def projected(rows: torch.Tensor, basis: Array | None) -> torch.Tensor:
    """Return rows (rows, groups, d) as (V ⊗ 1)ᵀ x; see `rankfold.adapters.base.LayerVisitor`."""
    if basis is None:
        return rows
    count, groups, _ = rows.shape
    v: Any = like(basis, rows)  # type: ignore[arg-type]  # a tensor stands for an array
    v = v.to(rows)
    split = rows.reshape(count, groups, v.shape[1], -1)
    return torch.einsum("rgnp,gnk->rgkp", split, v).reshape(count, groups, -1)


def add_distance(total: RelativeDistance, y: torch.Tensor, other: torch.Tensor) -> None:
    """Add the distance of an output and of what stands in its place."""
    y, other = working(y), working(other)
    total.add(squared_norm(y - other), squared_norm(y))


def squared_norm(x: torch.Tensor) -> float:
    """Return Σ x², added up in float64."""
    # Short stretches in the tensor's own precision, and these in float64: one sum of a large
    # output in float32 would be off by a hundredth, and a norm in float64 takes 20 times as long.
    flat = x.reshape(-1)
    whole = flat.numel() // _STRETCH * _STRETCH
    stretches = torch.linalg.vector_norm(flat[:whole].view(-1, _STRETCH), dim=1).double()
    rest = torch.linalg.vector_norm(flat[whole:], dtype=torch.float64)
    total = float(stretches.square().sum() + rest.square())
    if _LEAST < total < math.inf:
        return total
    # Squares were out of the range of float32.
    return float(torch.linalg.vector_norm(flat, dtype=torch.float64).square())


def all_finite(x: torch.Tensor) -> bool:
    """Return whether all values are finite."""
    # A sum with an infinite or undefined term is so, too, and takes a tenth of the time. One that
    # is not finite may have overflown.
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return Σ a bᵀ over rows: (groups, a, b) of (rows, groups, a) and (rows, groups, b)."""
    # Hooks run within the autocast of the model, which would multiply in half precision.
    with torch.no_grad(), torch.autocast(a.device.type, enabled=False):
        # One plain product is faster than a batch of one.
        if a.shape[1] > 1:
            return torch.bmm(a.permute(1, 2, 0), b.permute(1, 0, 2))
        if a is b and a.shape[2] >= _BLOCKED:
            return _square(a[:, 0])[None]
        return (a[:, 0].T @ b[:, 0])[None]


def mixtures(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return Ωᵀ x: (rows, groups, k) of (rows, groups, d) and Ω (groups, d, k)."""
    with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        if rows.shape[1] > 1:
            return torch.bmm(rows.permute(1, 0, 2), matrix).permute(1, 0, 2)
        return (rows[:, 0] @ matrix[0])[:, None]


def _square(rows: torch.Tensor) -> torch.Tensor:
    """Return Σ x xᵀ over rows (rows, d): the lower blocks alone are products."""
    size = rows.shape[1]
    total = rows.new_empty(size, size)
    step = -(-size // _BLOCKS)
    for start in range(0, size, step):
        block = slice(start, start + step)
        total[block, : start + step] = rows[:, block].T @ rows[:, : start + step]
        total[:start, block] = total[block, :start].T
    return total


def squares(rows: torch.Tensor) -> torch.Tensor:
    """Return Σ a² over rows: (groups, a) of (rows, groups, a)."""
    step = max(1, _SQUARES // max(1, rows.shape[1] * rows.shape[2]))
    total = rows[:step].square().sum(0)
    for start in range(step, len(rows), step):
        total += rows[start : start + step].square().sum(0)
    return total


def _added(total: torch.Tensor | None, term: torch.Tensor) -> torch.Tensor:
    """Add a term to a sum in place, on its device if it stays there, and return the sum."""
    term = term.detach()
    if not stays(term.device):
        term = term.to("cpu")
    if total is None:
        return term.to(_dtype_of_sum(term))
    # A model may be spread over several devices: the first one counts.
    return total.add_(term.to(total))


def _dtype_of_sum(term: torch.Tensor) -> torch.dtype:
    # In float64 the moments of a wide layer would take twice the memory.
    return torch.float64 if term.shape[-1] <= _LARGE else torch.float32


def working(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor in the precision of sums: float64 as it is, anything else as float32."""
    x = x.detach()
    return x if x.dtype == torch.float64 else x.float()
