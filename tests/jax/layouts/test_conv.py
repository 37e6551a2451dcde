"""Every stock NNX layer at any geometry: read into an op, decomposed and built again.

Sizes are distinct: no channel count, kernel or extent of a case equals another. The layer that a
chain stands for is computed by lax itself, from the reconstructed kernel.
"""

from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from tests.jax.layouts.layers import (
    FIRST,
    KINDS,
    METHODS,
    ROUNDING,
    compressed,
    drawn,
    filled,
    initial,
    normal,
    off,
    rngs,
)

import rankfold as rf
from rankfold.ops.reference import reconstruct

EXTENTS = (11, 13, 9)


def op_of(layer: Any) -> rf.Conv:
    """A convolution as an op, in the orientation in which lax correlates."""
    kernel = np.asarray(layer.kernel[...], np.float64)
    if getattr(layer, "transpose_kernel", False):
        kernel = np.flip(kernel.swapaxes(-1, -2), tuple(range(kernel.ndim - 2)))
    weight = np.ascontiguousarray(np.moveaxis(kernel, (-1, -2), (0, 1)))
    return rf.Conv(weight, groups=getattr(layer, "feature_group_count", 1))


def dense_kernel(layer: Any, chain: Any) -> np.ndarray:
    """The kernel of the layer, channels last, that a chain stands for."""
    weight = reconstruct(op_of(layer), [op_of(stage) for stage in chain.layers])
    return np.moveaxis(weight, (0, 1), (-1, -2)).astype(np.float32)


def spread(value: Any, axes: int) -> tuple[int, ...]:
    return (value or 1,) * axes if value is None or isinstance(value, int) else tuple(value)


def by_lax(layer: Any, kernel: np.ndarray, x: np.ndarray) -> Any:
    """What the layer computes with that kernel, by lax alone."""
    axes = len(layer.kernel_size)
    strides, dilation = spread(layer.strides, axes), spread(layer.kernel_dilation, axes)
    padding = layer.padding
    if isinstance(padding, int):
        padding = (padding,) * axes
    if not isinstance(padding, str):
        padding = [(p, p) if isinstance(p, int) else p for p in padding]
    bias = 0 if layer.bias is None else layer.bias[...]
    if isinstance(layer, nnx.ConvTranspose):
        return lax.conv_transpose(x, kernel, strides, padding, rhs_dilation=dilation) + bias
    reach = [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, dilation, strict=True)]
    if padding in ("CIRCULAR", "REFLECT"):
        mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}[padding]
        x = np.pad(x, [(0, 0), *(((r - 1) // 2, r // 2) for r in reach), (0, 0)], mode=mode)
        padding = "VALID"
    elif padding == "CAUSAL":
        padding = [(reach[0] - 1, 0)]
    letters = "DHW"[:axes]
    y = lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        lhs_dilation=spread(layer.input_dilation, axes),
        rhs_dilation=dilation,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        feature_group_count=layer.feature_group_count,
    )
    return y + bias


def per_axis(axes: int, values: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[values] * axes)


def paddings(axes: int) -> st.SearchStrategy[Any]:
    names = ["SAME", "SAME_LOWER", "VALID", "CIRCULAR", "REFLECT"] + ["CAUSAL"] * (axes == 1)
    names += ["same", "Same_lower", "valid"]  # JAX takes any case, Flax's own names have one
    return st.one_of(
        st.sampled_from(names),
        st.integers(0, 2),
        st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 2))] * axes),
        per_axis(axes, st.integers(0, 3)),
    )


@st.composite
def convs(draw: st.DrawFn, pointwise: bool = False, axes: tuple[int, ...] = (1, 2)) -> nnx.Conv:
    ndim = draw(st.sampled_from(axes))
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    layer = nnx.Conv(
        groups * draw(st.sampled_from((5, 7))),
        groups * draw(st.sampled_from((3, 8))),
        draw(per_axis(ndim, st.integers(1, 1 if pointwise else 4))),
        draw(st.one_of(st.none(), st.integers(1, 3), per_axis(ndim, st.integers(1, 3)))),
        padding=draw(paddings(ndim)),
        kernel_dilation=draw(st.one_of(st.integers(1, 2), per_axis(ndim, st.integers(1, 2)))),
        feature_group_count=groups,
        use_bias=draw(st.booleans()),
        kernel_init=initial,
        rngs=rngs(),
    )
    return filled(layer)


@st.composite
def dilated(draw: st.DrawFn) -> nnx.Conv:
    """Transposed convolutions written as convolutions of a dilated input; groups are allowed."""
    ndim, groups = draw(st.integers(1, 2)), draw(st.sampled_from((1, 2, 3)))
    kernel = draw(per_axis(ndim, st.integers(2, 4)))
    layer = nnx.Conv(
        groups * 5,
        groups * 3,
        kernel,
        padding=tuple((draw(st.integers(0, k - 1)), draw(st.integers(0, k))) for k in kernel),
        input_dilation=draw(per_axis(ndim, st.integers(2, 3))),
        feature_group_count=groups,
        kernel_init=initial,
        rngs=rngs(),
    )
    return filled(layer)


@st.composite
def transposed(draw: st.DrawFn, axes: tuple[int, ...] = (1, 2)) -> nnx.ConvTranspose:
    ndim = draw(st.sampled_from(axes))
    kernel = draw(per_axis(ndim, st.integers(1, 4)))
    pairs = st.tuples(*(st.tuples(st.integers(0, k - 1), st.integers(0, k)) for k in kernel))
    layer = nnx.ConvTranspose(
        draw(st.sampled_from((5, 7))),
        draw(st.sampled_from((3, 8))),
        kernel,
        draw(st.one_of(st.none(), st.integers(1, 3), per_axis(ndim, st.integers(1, 5)))),
        padding=draw(st.one_of(st.sampled_from(("SAME", "VALID")), pairs)),
        kernel_dilation=draw(st.one_of(st.none(), per_axis(ndim, st.integers(1, 2)))),
        use_bias=draw(st.booleans()),
        transpose_kernel=draw(st.booleans()),
        kernel_init=initial,
        rngs=rngs(),
    )
    return filled(layer)


def probe(layer: Any) -> np.ndarray:
    return normal(2, *EXTENTS[: len(layer.kernel_size)], layer.in_features)


@pytest.mark.parametrize("method", METHODS)
@drawn(2)
@given(data=st.data())
def test_a_convolution_of_reduced_rank_is_that_of_the_reconstructed_kernel(
    method: str, data: st.DataObject
) -> None:
    axes = (2,) if method == "spatial_svd" else (1, 2)
    layer = data.draw(convs(pointwise=method == "svd", axes=axes))
    model, chain, plan = compressed(layer, rf.Ranks(2), methods=[method])
    x = probe(layer)
    assert (plan.method, plan.ranks[0]) == (method, 2)
    assert off(model(x), by_lax(layer, dense_kernel(layer, chain), x)) < ROUNDING


@drawn(3)
@given(layer=convs(axes=(2,)), method=st.sampled_from(METHODS[1:]))
def test_a_convolution_of_full_rank_is_reproduced(layer: nnx.Conv, method: str) -> None:
    model, _, plan = compressed(layer, rf.Ranks("full"), methods=[method])
    x = probe(layer)
    assert plan.method == method
    assert off(model(x), layer(x)) < ROUNDING


@pytest.mark.parametrize("method", ["tucker2", "channel_svd"])
@drawn(2)
@given(layer=dilated())
def test_a_dilated_input_is_that_of_the_reconstructed_kernel(method: str, layer: nnx.Conv) -> None:
    model, chain, plan = compressed(layer, rf.Ranks(2), methods=[method])
    x = probe(layer)
    assert plan.method == method
    assert off(model(x), by_lax(layer, dense_kernel(layer, chain), x)) < ROUNDING


@pytest.mark.parametrize("method", ["tucker2", "cp"])
@drawn(3)
@given(layer=transposed())
def test_a_transposed_convolution_is_that_of_the_reconstructed_kernel(
    method: str, layer: nnx.ConvTranspose
) -> None:
    model, chain, plan = compressed(layer, rf.Ranks(2), methods=[method])
    x = probe(layer)
    assert plan.method == method
    assert off(model(x), by_lax(layer, dense_kernel(layer, chain), x)) < ROUNDING


@drawn(3)
@given(layer=transposed())
def test_a_transposed_convolution_of_full_rank_is_reproduced(layer: nnx.ConvTranspose) -> None:
    model, _, plan = compressed(layer, rf.Ranks("full"), methods=["tucker2"])
    x = probe(layer)
    assert plan.method == "tucker2"
    assert off(model(x), layer(x)) < ROUNDING


VOLUMES = {
    "conv": lambda: nnx.Conv(
        5, 7, (2, 3, 4), (1, 2, 1), padding="CIRCULAR", kernel_init=initial, rngs=rngs()
    ),
    "transposed": lambda: nnx.ConvTranspose(
        5, 7, (2, 3, 4), (1, 2, 3), transpose_kernel=True, kernel_init=initial, rngs=rngs()
    ),
}


@pytest.mark.parametrize("kind", VOLUMES)
def test_a_3d_kernel_is_that_of_the_reconstructed_one(kind: str) -> None:
    layer = filled(VOLUMES[kind]())
    model, chain, plan = compressed(layer, rf.Ranks(2), methods=["tucker2"])
    x = probe(layer)
    assert plan.method == "tucker2"
    assert off(model(x), by_lax(layer, dense_kernel(layer, chain), x)) < ROUNDING


TOLERANCES = {jnp.float16: 3e-3, jnp.bfloat16: 2e-2}


@pytest.mark.parametrize(("kind", "dtype"), list(zip(KINDS, cycle(TOLERANCES), strict=False)))
def test_low_precision_parameters_are_reproduced_in_their_dtype(kind: str, dtype: Any) -> None:
    make, shape = KINDS[kind]
    layer, x = make(param_dtype=dtype, rngs=rngs()), normal(*shape)
    model, chain, plan = compressed(layer, rf.Ranks("full"), methods=FIRST)
    assert plan.method in FIRST
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(chain))} == {jnp.dtype(dtype)}
    assert off(model(x), layer(x)) < TOLERANCES[dtype]


@pytest.mark.parametrize("batch", [(), (3, 2)], ids=["none", "two"])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_convolutions_take_any_number_of_batch_axes(kind: str, batch: tuple[int, ...]) -> None:
    make, shape = KINDS[kind]
    layer, x = make(rngs=rngs()), normal(*batch, *shape[1:])
    model, _, _ = compressed(layer, rf.Ranks("full"), inputs=x, methods=["channel_svd"])
    assert off(model(x), layer(x)) < ROUNDING


def products(jaxpr: Any, repeats: int = 1) -> int:
    """Multiply-accumulates of the products in a jaxpr; of branches the most expensive."""
    total = 0
    for eqn in jaxpr.eqns:
        values = [v for p in eqn.params.values() for v in (p if isinstance(p, tuple) else (p,))]
        inner = [getattr(v, "jaxpr", v) for v in values]
        times = repeats * eqn.params["length"] if eqn.primitive.name == "scan" else repeats
        counts = [products(found, times) for found in inner if hasattr(found, "eqns")]
        total += (max if eqn.primitive.name == "cond" else sum)(counts or [0])
        shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
        if eqn.primitive.name == "dot_general":
            contract = eqn.params["dimension_numbers"][0][0]
            summed = int(np.prod([shapes[0][axis] for axis in contract]))
            total += repeats * int(np.prod(shapes[2])) * summed
        elif eqn.primitive.name == "conv_general_dilated":
            rows = shapes[1][eqn.params["dimension_numbers"].rhs_spec[0]]
            total += repeats * int(np.prod(shapes[2])) * int(np.prod(shapes[1])) // rows
    return total


def measured(model: Any, *inputs: Any) -> int:
    graph, state = nnx.split(model)
    return products(jax.make_jaxpr(lambda s, *x: nnx.merge(graph, s)(*x))(state, *inputs).jaxpr)


def conv(*args: Any, **options: Any) -> Any:
    return lambda **o: nnx.Conv(*args, **options, **o)


IMAGE = (2, 11, 13, 5)
COSTS: dict[str, tuple[Any, tuple[int, ...], str]] = {
    **{kind: (*KINDS[kind], "svd") for kind in ("Linear", "LinearGeneral", "Einsum")},
    **{method: (*KINDS["Conv"], method) for method in METHODS[1:]},
    "strided": (conv(5, 7, (3, 4), (2, 3), kernel_dilation=2), IMAGE, "tucker2"),
    "circular": (conv(5, 7, (3, 4), (2, 3), padding="CIRCULAR"), IMAGE, "tucker2"),
    "reflect": (conv(5, 7, (3, 4), padding="REFLECT"), IMAGE, "spatial_svd"),
    "causal": (conv(5, 7, 4, 2, padding="CAUSAL", kernel_dilation=2), (2, 11, 5), "channel_svd"),
    "grouped": (conv(10, 6, (3, 2), feature_group_count=2), (2, 9, 8, 10), "tucker2"),
    "no batch": (conv(5, 7, (3, 2)), (9, 8, 5), "tucker2"),
    "two batches": (conv(5, 7, (3, 2)), (4, 3, 9, 8, 5), "tucker2"),
}


@pytest.mark.parametrize("case", COSTS)
def test_the_predicted_cost_is_that_of_the_jaxpr_and_of_the_state(case: str) -> None:
    make, shape, method = COSTS[case]
    layer, x = make(rngs=rngs()), normal(*shape)
    model, _, plan = compressed(layer, rf.Ranks(2), inputs=x, methods=[method])
    assert plan.method == method
    assert plan.macs == (measured(layer, x), measured(model, x))
    sizes = [sum(x.size for x in jax.tree.leaves(nnx.state(m))) for m in (layer, model)]
    assert plan.params == tuple(sizes)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nnx.Linear(1, 7, rngs=rngs()),
        lambda: nnx.Linear(7, 1, rngs=rngs()),
        lambda: nnx.Embed(1, 7, rngs=rngs()),
        lambda: nnx.Conv(1, 1, (3,), kernel_init=initial, rngs=rngs()),
    ],
    ids=["one input", "one output", "one row", "one channel"],
)
def test_a_side_of_one_is_reproduced_or_left_alone(make: Any) -> None:
    layer = make()
    features = getattr(layer, "in_features", 1)
    x = jnp.zeros((2,), int) if isinstance(layer, nnx.Embed) else normal(2, 4, features)
    model, _, plan = compressed(layer, rf.Ranks(1), inputs=x)
    assert plan.method or plan.reason
    assert off(model(x), layer(x)) < ROUNDING
