"""Layers at products: rows and outputs of an equation, laid out as those of the op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rankfold.ops import Embedding, Op
from rankfold_jax.calibration.layer_products import (
    LayerProduct,
    layer_product,
    sampled,
    working,
)
from rankfold_jax.jaxpr.element_index import IndexedValue
from rankfold_jax.layouts.base import LayerLayout
from rankfold_jax.layouts.conv import ConvForm
from rankfold_jax.layouts.dense import DenseForm, EinsumForm, EmbedForm
from rankfold_jax.layouts.parameter_index import ParameterIndex
from rankfold_jax.layouts.stacks import StackedAxes

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def product_of(
    function: Callable[..., Any],
    kernel: np.ndarray,
    x: np.ndarray,
    form: LayerLayout,
    primitive: str,
) -> tuple[LayerProduct | None, Op]:
    """The layer at the only equation of a kind, whose other operand is the input."""
    stack = StackedAxes((0,), (1,))
    op = form.op(kernel[None], None)
    parameter = ParameterIndex(form, 0, (1, *kernel.shape), stack)
    closed = jax.make_jaxpr(function)(kernel, x)
    (eqn,) = (e for e in closed.jaxpr.eqns if e.primitive.name == primitive)
    tracked = IndexedValue.whole(0, kernel.shape)
    inside = [tracked if v is closed.jaxpr.invars[0] else None for v in eqn.invars]
    return layer_product(eqn, inside, "layer", parameter, op), op


FORMS: dict[str, tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...], Any]] = {
    "dense": (lambda w, x: x @ w, (5, 7), (2, 3, 5), DenseForm((5,), (7,))),
    "kernel on the left": (
        lambda w, x: jnp.einsum("io,bi->ob", w, x),
        (5, 7),
        (2, 5),
        DenseForm((5,), (7,)),
    ),
    "groups": (
        lambda w, x: lax.dot_general(x, w, (((2,), (1,)), ((1,), (0,)))),
        (3, 5, 7),
        (2, 3, 5),
        EinsumForm("bgi,gio->bgo", (3, 5, 7)),
    ),
    "convolution": (
        lambda w, x: lax.conv_general_dilated(
            x, w, (2,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2
        ),
        (3, 4, 6),
        (2, 11, 8),
        ConvForm((3,), 8, 6, (2,), "VALID", (1,), 2),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_weight_of_the_op_maps_rows_to_outputs(name: str) -> None:
    function, shape, inputs, form = FORMS[name]
    kernel, x = normal(*shape), normal(*inputs)
    primitive = "conv_general_dilated" if name == "convolution" else "dot_general"
    product, op = product_of(function, kernel, x, form, primitive)
    assert product is not None
    closed = jax.make_jaxpr(function)(kernel, x)
    (eqn,) = (e for e in closed.jaxpr.eqns if e.primitive.name == primitive)
    y = eqn.primitive.bind(*((kernel, x) if product.side == 0 else (x, kernel)), **eqn.params)
    rows, outputs = product.rows(jnp.asarray(x), None), product.outputs(y, None)
    weight = op.weight.reshape(op.groups, len(op.weight) // op.groups, -1)
    assert rows.shape[1:] == (op.groups, weight.shape[2])
    np.testing.assert_allclose(
        outputs, np.einsum("god,ngd->ngo", weight, rows), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(product.groups(), np.arange(op.groups))


def test_a_product_with_the_transposed_kernel_is_not_the_layer() -> None:
    def transposed(w: Any, x: Any) -> Any:
        return lax.dot_general(x, w, (((1,), (1,)), ((), ())))

    form = DenseForm((5,), (5,))
    product, _ = product_of(transposed, normal(5, 5), normal(2, 5), form, "dot_general")
    assert product is None


def test_a_table_is_met_at_a_look_up_of_whole_rows_only() -> None:
    table, form = normal(11, 4), EmbedForm(11, 4)
    ids = np.array([[3, 0], [10, 3]])
    product, op = product_of(lambda w, i: w.at[i].get(mode="clip"), table, ids, form, "gather")
    assert product is not None
    assert isinstance(op, Embedding)
    np.testing.assert_array_equal(
        product.outputs(jnp.asarray(table[ids]), None)[:, 0], table[ids.ravel()]
    )
    sliced, _ = product_of(lambda w, i: w.at[i, :2].get(mode="clip"), table, ids, form, "gather")
    assert sliced is None


def test_few_positions_are_enough_where_many_examples_are_seen() -> None:
    kernel, x = normal(3, 4, 6), normal(2, 11, 8)
    function, _, _, form = FORMS["convolution"]
    product, op = product_of(function, kernel, x, form, "conv_general_dilated")
    assert product is not None
    assert sampled(product.view, op, 1) is None
    few = sampled(product.view, op, 10**6)
    assert few is not None
    assert 1 <= few < product.view.positions
    assert sampled(product.view, Embedding(normal(5, 2)), 10**6) is None


def test_sums_are_made_in_float32_at_least() -> None:
    assert working(jnp.zeros(2, jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert working(jnp.zeros(2, jnp.float64)).dtype == jnp.float64
