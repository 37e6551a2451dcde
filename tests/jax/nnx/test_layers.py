from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import rankfold as rf
from rankfold.ops.reference import reconstruct
from rankfold_jax.nnx.adapter import NNXAdapter

METHODS = ("svd", "tucker2", "channel_svd", "spatial_svd", "cp", "cp3")


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def x_of(*shape: int) -> jax.Array:
    return jax.device_put(np.random.default_rng(1).standard_normal(shape, np.float32))


LAYERS: dict[str, tuple[Any, jax.Array]] = {
    "Linear": (lambda: nnx.Linear(7, 11, rngs=rngs()), x_of(2, 3, 7)),
    "Linear without bias": (lambda: nnx.Linear(7, 5, use_bias=False, rngs=rngs()), x_of(7)),
    "LinearGeneral": (lambda: nnx.LinearGeneral(7, (2, 3), rngs=rngs()), x_of(4, 7)),
    "LinearGeneral of several axes": (
        lambda: nnx.LinearGeneral((3, 5), (2, 4), axis=(1, -1), rngs=rngs()),
        x_of(2, 3, 6, 5),
    ),
    "LinearGeneral with a batch axis": (
        lambda: nnx.LinearGeneral(5, 7, batch_axis={0: 3}, rngs=rngs()),
        x_of(3, 4, 5),
    ),
    "Einsum": (lambda: nnx.Einsum("nta,hab->nthb", (8, 7, 4), (8, 4), rngs=rngs()), x_of(2, 3, 7)),
    "Einsum with an ellipsis": (
        lambda: nnx.Einsum("...a,abc->...cb", (7, 3, 5), (5, 3), rngs=rngs()),
        x_of(2, 6, 7),
    ),
    "Einsum by expert": (
        lambda: nnx.Einsum("etd,edf->etf", (3, 5, 7), (3, 7), rngs=rngs()),
        x_of(3, 4, 5),
    ),
    "Einsum that contracts two": (
        lambda: nnx.Einsum("btnh,nhd->btd", (3, 5, 7), rngs=rngs()),
        x_of(2, 4, 3, 5),
    ),
    "Conv 1-d causal": (
        lambda: nnx.Conv(5, 7, (3,), padding="CAUSAL", kernel_dilation=2, rngs=rngs()),
        x_of(2, 9, 5),
    ),
    "Conv 2-d": (
        lambda: nnx.Conv(5, 7, (3, 2), (2, 1), padding=((1, 0), (0, 2)), rngs=rngs()),
        x_of(2, 9, 8, 5),
    ),
    "Conv without a batch axis": (lambda: nnx.Conv(5, 7, (3, 2), rngs=rngs()), x_of(9, 8, 5)),
    "Conv of many batch axes": (lambda: nnx.Conv(5, 7, (3,), rngs=rngs()), x_of(2, 3, 9, 5)),
    "Conv grouped": (
        lambda: nnx.Conv(6, 9, (3, 2), feature_group_count=3, rngs=rngs()),
        x_of(2, 9, 8, 6),
    ),
    "Conv 3-d": (lambda: nnx.Conv(5, 4, (3, 2, 2), strides=2, rngs=rngs()), x_of(2, 6, 5, 7, 5)),
    "Conv with a dilated input": (
        lambda: nnx.Conv(
            5, 7, (3, 2), padding=((1, 2), (0, 1)), input_dilation=(2, 3), rngs=rngs()
        ),
        x_of(2, 5, 4, 5),
    ),
    "ConvTranspose": (
        lambda: nnx.ConvTranspose(5, 7, (4, 3), strides=(2, 3), rngs=rngs()),
        x_of(2, 5, 4, 5),
    ),
    "ConvTranspose flipped": (
        lambda: nnx.ConvTranspose(
            5, 7, (2, 3), strides=(3, 2), padding="VALID", transpose_kernel=True, rngs=rngs()
        ),
        x_of(2, 5, 4, 5),
    ),
    "ConvTranspose padded": (
        lambda: nnx.ConvTranspose(5, 7, (3,), 2, padding=((1, 2),), kernel_dilation=2, rngs=rngs()),
        x_of(2, 6, 5),
    ),
    "Embed": (lambda: nnx.Embed(11, 7, rngs=rngs()), jnp.arange(6).reshape(2, 3)),
}
for padding in ("SAME", "VALID", "SAME_LOWER", "CIRCULAR", "REFLECT", 1, (1, 2)):
    LAYERS[f"Conv padding {padding}"] = (
        lambda padding=padding: nnx.Conv(5, 7, (3, 4), (2, 1), padding=padding, rngs=rngs()),
        x_of(2, 9, 8, 5),
    )


def filled(layer: Any) -> Any:
    """The layer with a bias that is not zero."""
    if getattr(layer, "bias", None) is not None:
        layer.bias[...] = x_of(*layer.bias.shape)
    return layer


@pytest.mark.parametrize("name", list(LAYERS))
def test_full_rank_reproduces_the_layer(name: str, distance: Any) -> None:
    make, x = LAYERS[name]
    model = nnx.Sequential(filled(make()))
    # The methods take turns, as each on each layer of any geometry is of `layouts/test_conv.py`.
    turn = list(LAYERS).index(name) % 3
    methods = ["svd", "tucker2", "cp" if x.ndim < 5 else "cp3"]
    for method in methods[turn:] + methods[:turn]:
        small = rf.compress(model, rf.Ranks("full"), inputs=x, methods=method)
        if small.plan.replaced:
            break
    assert small.plan.replaced
    assert distance(small.model(x), model(x)) < 3e-6


@pytest.mark.parametrize("name", list(LAYERS))
def test_the_op_that_was_read_is_the_layer(name: str, distance: Any) -> None:
    make, x = LAYERS[name]
    model = nnx.Sequential(filled(make()))
    adapter = NNXAdapter()
    trace = adapter.trace(model, x)
    op = adapter.read(model, "layers.0")
    (extent,) = trace.extents["layers.0"]
    bias = 0 if op.bias is None else op.bias.size
    assert adapter.size(model) == op.weight.size + bias
    from rankfold.ops import macs

    cost = jax.jit(model).lower(x).cost_analysis() if op.weight.ndim == 2 else None
    if cost and op.groups == 1 and not isinstance(op, rf.Embedding):
        flops = cost["flops"] - (0 if op.bias is None else np.prod(model(x).shape))
        assert macs(op, extent) == flops / 2


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    axes = draw(st.integers(1, 2))
    pair = st.tuples(st.integers(0, 3), st.integers(0, 3))
    groups = draw(st.sampled_from([1, 1, 2]))
    return {
        "kernel": tuple(draw(st.integers(1, 4)) for _ in range(axes)),
        "strides": tuple(draw(st.integers(1, 3)) for _ in range(axes)),
        "dilation": tuple(draw(st.integers(1, 2)) for _ in range(axes)),
        "padding": draw(
            st.one_of(
                st.sampled_from(["SAME", "VALID", "SAME_LOWER"]),
                st.tuples(*[pair] * axes),
            )
        ),
        "groups": groups,
        "size": tuple(draw(st.integers(8, 9)) for _ in range(axes)),
        "method": draw(st.sampled_from(METHODS)),
    }


@settings(max_examples=4, deadline=None)
@given(geometries())
def test_reduced_rank_is_the_convolution_with_the_reconstructed_kernel(g: dict[str, Any]) -> None:
    into, out = 6, 10
    layer = nnx.Conv(
        into,
        out,
        g["kernel"],
        g["strides"],
        padding=g["padding"],
        kernel_dilation=g["dilation"],
        feature_group_count=g["groups"],
        rngs=rngs(),
    )
    x = x_of(2, *g["size"], into)
    model = nnx.Sequential(layer)
    small = rf.compress(model, rf.Ratio(0.6), inputs=x, methods=g["method"])
    (planned,) = small.plan.layers
    if planned.method is None:
        assert planned.reason
        return
    adapter = NNXAdapter()
    adapter.trace(small.model, x)
    original = NNXAdapter().read(model, "layers.0")
    chain = []
    for path in adapter.layers(small.model):
        chain.append(adapter.read(small.model, path))
    dense = np.moveaxis(reconstruct(original, chain), (0, 1), (-1, -2))
    spatial = "HW"[: len(g["kernel"])]
    expected = lax.conv_general_dilated(
        x,
        jnp.asarray(dense, jnp.float32),
        g["strides"],
        g["padding"],
        rhs_dilation=g["dilation"],
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=g["groups"],
    )
    np.testing.assert_allclose(small.model(x), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=5, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 2),
    st.sampled_from(["SAME", "VALID"]),
    st.booleans(),
)
def test_a_transposed_convolution_is_that_of_lax(
    kernel: int, stride: int, dilation: int, padding: str, flipped: bool
) -> None:
    layer = nnx.ConvTranspose(
        5,
        7,
        (kernel,),
        stride,
        padding=padding,
        kernel_dilation=dilation,
        transpose_kernel=flipped,
        rngs=rngs(),
    )
    x = x_of(2, 6, 5)
    small = rf.compress(nnx.Sequential(layer), rf.Ranks("full"), inputs=x, methods="tucker2")
    expected = lax.conv_transpose(
        x,
        layer.kernel[...],
        (stride,),
        padding,
        rhs_dilation=(dilation,),
        transpose_kernel=flipped,
    )
    assert small.plan.replaced
    np.testing.assert_allclose(small.model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["Linear", "Conv 2-d", "ConvTranspose", "Embed"])
def test_the_dtype_of_parameters_is_kept(name: str, dtype: Any) -> None:
    make, x = LAYERS[name]
    model = nnx.Sequential(make())
    nnx.update(model, jax.tree.map(lambda a: a.astype(dtype), nnx.state(model)))
    small = rf.compress(model, rf.Ranks(2), inputs=x)
    assert small.plan.replaced
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(small.model))} == {jnp.dtype(dtype)}


def test_what_a_layer_computes_with_is_forwarded() -> None:
    def dot(*args: Any, **kwargs: Any) -> Any:
        return lax.dot_general(*args, **kwargs)

    layer = nnx.Linear(7, 5, dtype=jnp.bfloat16, precision="highest", dot_general=dot, rngs=rngs())
    small = rf.compress(nnx.Sequential(layer), rf.Ranks(2), inputs=x_of(2, 7))
    for stage in small.model.layers[0].layers:
        assert stage.dot_general is dot
        assert stage.precision == "highest"
        assert stage.dtype == jnp.bfloat16
        assert stage.param_dtype == jnp.float32
    assert small.model(x_of(2, 7)).dtype == jnp.bfloat16


def test_a_convolution_of_ones_own_is_forwarded() -> None:
    def conv(*args: Any, **kwargs: Any) -> Any:
        return lax.conv_general_dilated(*args, **kwargs)

    layer = nnx.Conv(6, 8, (3, 3), conv_general_dilated=conv, rngs=rngs())
    small = rf.compress(nnx.Sequential(layer), rf.Ranks(4), methods="cp")
    assert {stage.conv_general_dilated for stage in small.model.layers[0].layers} == {conv}


def test_attend_goes_through_the_chain(distance: Any) -> None:
    embed = nnx.Embed(11, 7, rngs=rngs())
    small = rf.compress(nnx.Sequential(embed), rf.Ranks("full"), inputs=jnp.arange(3))
    query = x_of(2, 7)
    assert distance(small.model.layers[0].attend(query), embed.attend(query)) < 1e-5
