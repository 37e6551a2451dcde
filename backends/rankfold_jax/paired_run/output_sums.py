"""Sums and distances over the rows of a layer in two runs, compiled once per kind of product."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankfold.calibration.accumulators import RelativeDistance, regression_sums
from rankfold.calibration.moments import RegressionSums
from rankfold.linalg import Array
from rankfold_jax.calibration.layer_products import LayerProduct, op_outputs, op_rows
from rankfold_jax.calibration.moment_interpreter import gram
from rankfold_jax.calibration.patches import PatchView
from rankfold_jax.layouts.sharding import away

_NAMES = ("xx", "yx", "x", "y", "square", "yy")
"""The last of held-out rows alone."""


class OutputSums:
    """The sums of a `RegressionSums`, over batches."""

    def __init__(self) -> None:
        self._sums: list[Array] | None = None
        self.count = 0

    def add(self, terms: list[jax.Array], count: int) -> None:
        """Adds the sums over the rows of a batch."""
        if not count:
            return
        # In float64, on the device if decompositions compute there.
        wide: list[Any] = [
            (term if away(term) else np.asarray(term)).astype(np.float64) for term in terms
        ]
        self._sums = (
            wide if self._sums is None else [a + b for a, b in zip(self._sums, wide, strict=True)]
        )
        self.count += count

    def regression_sums(self) -> RegressionSums | None:
        """The sums so far; None where there are none, or where they are not finite."""
        if self._sums is None:
            return None
        return regression_sums(dict(zip(_NAMES, self._sums, strict=False)), self.count)


def regression_terms(
    product: LayerProduct,
    x: Any,
    y: Any,
    bias: Array,
    chosen: Any,
    held_out: Array,
    basis: Array | None,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The sums over fitted and over held-out rows of a batch.

    Args:
        product: the product.
        x: its input in the compressed model.
        y: its output in the original one.
        bias: (groups, out/groups), what the original layer adds to that.
        chosen: (images, rows of one), the positions; None for all.
        held_out: (images,), whether an image is held out.
        basis: that rows are projected on; see `rankfold.adapters.base.LayerVisitor`.
    """
    layout = product.layout
    where = (layout.rows, layout.outs, chosen)
    fit, validation = _terms(product.view, x, y, where, bias, held_out, basis)
    return fit, validation


@partial(jax.jit, static_argnums=0)
def _terms(
    view: PatchView, x: Any, y: Any, where: Any, bias: Any, held_out: Any, basis: Any
) -> Any:
    rows, outs, chosen = where
    inputs = op_rows(view, x, rows, chosen)
    if basis is not None:
        count, groups, _ = inputs.shape
        split = inputs.reshape(count, groups, basis.shape[1], -1)
        narrow = jnp.einsum("rgnp,gnk->rgkp", split, basis.astype(split.dtype))
        inputs = narrow.reshape(count, groups, -1)
    targets = op_outputs(view, y, outs, chosen) + bias.astype(inputs.dtype)
    out = jnp.repeat(held_out, len(inputs) // len(held_out))[:, None, None]

    def sums(mask: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        a, b = (jnp.where(mask, part, 0) for part in (inputs, targets))
        return [gram(a, a), gram(b, a), a.sum(0), b.sum(0), jnp.square(b).sum((0, 2))], b

    fitted, _ = sums(~out)
    validation, b = sums(out)
    return fitted, [*validation, gram(b, b)]


def add_distance(
    total: RelativeDistance, product: LayerProduct, y: Any, other: Any, bias: Array, new: Array
) -> None:
    """Add the distance of the outputs at a product, over all its positions.

    Args:
        total: of the layer.
        product: the product.
        y: its output in the original model.
        other: its output in the compressed one.
        bias: (groups, out/groups), what the layer adds to it.
        new: the same in the compressed model.
    """
    groups = product.layout.groups
    error, energy = _distance(
        product.view, y, other, product.layout.outs, bias[groups], new[groups]
    )
    total.add(float(error), float(energy))


@partial(jax.jit, static_argnums=0)
def _distance(view: PatchView, y: Any, other: Any, outs: Any, bias: Any, new: Any) -> Any:
    first, second = (op_outputs(view, part, outs, None) for part in (y, other))
    first, second = first + bias.astype(first.dtype), second + new.astype(first.dtype)
    return jnp.square(first - second).sum(), jnp.square(first).sum()
