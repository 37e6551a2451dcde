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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

import rankfold as rf
from rankfold.ops.reference import reconstruct

METHODS = ("svd", "channel_svd", "spatial_svd", "tucker2", "cp", "cp3")
EXTENTS = (11, 13, 9)
ROUNDING = 5e-6


def drawn(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def initial(key: Any, shape: tuple[int, ...], dtype: Any, *_: Any) -> jax.Array:
    """Numbers of a kernel that are not drawn by JAX, which would compile that for each shape."""
    return jax.device_put(normal(*shape, dtype=dtype))


def filled(layer: Any) -> Any:
    """The layer with a bias that is not zero."""
    if getattr(layer, "bias", None) is not None:
        layer.bias[...] = jax.device_put(normal(*layer.bias.shape, dtype=layer.bias.dtype))
    return layer


def off(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def compressed(layer: Any, policy: Any, **options: Any) -> tuple[Any, Any, rf.LayerPlan]:
    """The model, its one layer and the plan for it."""
    small = rf.compress(nnx.Sequential(layer), policy, **options)
    return small.model, small.model.layers[0], small.plan["layers.0"]


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


@st.composite
def generals(draw: st.DrawFn) -> tuple[nnx.LinearGeneral, np.ndarray]:
    """A layer and an input for it; batch axes come first, contracted ones anywhere."""
    batch = draw(st.sampled_from(((), (2,), (2, 3))))
    free = draw(st.sampled_from(((), (4,), (4, 6))))
    sizes = draw(st.sampled_from(((11,), (5, 7))))
    ndim = len(batch) + len(free) + len(sizes)
    places = sorted(draw(st.permutations(range(len(batch), ndim)))[: len(sizes)])
    rest = iter(free)
    shape = [sizes[places.index(p)] if p in places else next(rest) for p in range(len(batch), ndim)]
    if draw(st.booleans()):
        places = [place - ndim for place in places]
    layer = nnx.LinearGeneral(
        sizes,
        draw(st.sampled_from((13, (13,), (8, 3)))),
        axis=tuple(places),
        batch_axis=dict(enumerate(batch)),
        use_bias=draw(st.booleans()),
        kernel_init=initial,
        rngs=rngs(),
    )
    return filled(layer), normal(*batch, *shape)


@drawn(5)
@given(case=generals())
def test_a_general_linear_layer_of_full_rank_is_reproduced(case: Any) -> None:
    layer, x = case
    model, _, plan = compressed(layer, rf.Ranks("full"), inputs=x)
    assert plan.method == "svd"
    assert off(model(x), layer(x)) < ROUNDING


@drawn(3)
@given(case=generals())
def test_a_general_linear_layer_of_reduced_rank_has_a_product_for_its_kernel(case: Any) -> None:
    layer, x = case
    model, chain, _ = compressed(layer, rf.Ranks(2))
    first, second = chain.layers
    batch = len(layer.batch_axis)
    groups, letters = "abc"[:batch], "ABCDEFGH"[: layer.kernel[...].ndim - batch]
    into, out = letters[: len(layer.in_features)], letters[len(layer.in_features) :]
    product = f"{groups}{into}z,{groups}z{out}->{groups}{into}{out}"
    dense = nnx.clone(layer)
    dense.kernel[...] = jnp.einsum(product, first.kernel[...], second.kernel[...])
    assert off(model(x), dense(x)) < ROUNDING


def test_contracted_axes_need_not_ascend() -> None:
    layer = nnx.LinearGeneral((5, 3), 7, axis=(-1, 1), kernel_init=initial, rngs=rngs())
    model, _, plan = compressed(layer, rf.Ranks("full"))
    x = normal(2, 5, 4, 3)
    assert plan.method == "svd"
    assert off(model(x), layer(x)) < ROUNDING


def test_a_negative_axis_may_reach_the_first_behind_the_batch() -> None:
    layer = nnx.LinearGeneral(11, 13, axis=-3, batch_axis={0: 2}, kernel_init=initial, rngs=rngs())
    assert compressed(layer, rf.Ranks(2), inputs=normal(2, 11, 4, 6))[2].method == "svd"


EINSUMS = {
    "plain": ("bi,io->bo", (5, 7), (7,), (2, 5)),
    "heads": ("btd,dnh->btnh", (11, 3, 5), (3, 5), (2, 4, 11)),
    "heads first": ("btd,ndh->bnth", (3, 11, 5), (3, 5), (2, 4, 11)),
    "out": ("btnh,nhd->btd", (3, 5, 11), (11,), (2, 4, 3, 5)),
    "groups": ("bgi,gio->bgo", (3, 5, 7), (3, 7), (2, 3, 5)),
    "groups last": ("big,oig->bgo", (7, 5, 3), (3, 7), (2, 5, 3)),
    "two groups": ("agbi,gaoi->boag", (3, 4, 7, 5), (7, 4, 3), (4, 3, 2, 5)),
    "ellipsis": ("...i,io->...o", (5, 7), (7,), (2, 3, 5)),
    "ellipsis moved": ("i...,oi->o...", (7, 5), None, (5, 2, 3)),
    "summed": ("bti,io->bo", (5, 7), (7,), (2, 4, 5)),
    "transposed": ("bi,oi->ob", (7, 5), None, (2, 5)),
    "spaces": ("b i, i o -> b o", (5, 7), (1, 7), (2, 5)),
}


@pytest.mark.parametrize("case", EINSUMS)
def test_an_einsum_of_full_rank_is_reproduced(case: str) -> None:
    text, kernel, bias, shape = EINSUMS[case]
    layer, x = filled(nnx.Einsum(text, kernel, bias, rngs=rngs())), normal(*shape)
    model, _, plan = compressed(layer, rf.Ranks("full"), inputs=x)
    assert plan.method == "svd"
    assert off(model(x), layer(x)) < ROUNDING


@pytest.mark.parametrize("case", EINSUMS)
def test_an_einsum_of_rank_one_has_the_error_of_its_matrices(case: str) -> None:
    text, kernel, _, _ = EINSUMS[case]
    layer = nnx.Einsum(text, kernel, rngs=rngs())
    given_term, _, rest = layer.einsum_str.partition(",")
    term, _, output = rest.partition("->")
    shared = [c for c in term if c in given_term and c in output]
    into = [c for c in term if c not in output]
    out = [c for c in term if c not in given_term]
    matrix = np.einsum(f"{term}->{''.join(shared + into + out)}", np.asarray(layer.kernel[...]))
    rows = int(np.prod([kernel[term.index(c)] for c in into]))
    columns = int(np.prod([kernel[term.index(c)] for c in out]))
    values = np.linalg.svd(matrix.reshape(-1, rows, columns), compute_uv=False)
    expected = np.sqrt((values[:, 1:] ** 2).sum() / (values**2).sum())
    assert compressed(layer, rf.Ranks(1))[2].error == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(13, 6), (6, 13)])
def test_a_table_looks_up_the_rows_of_the_product(rows: int, columns: int) -> None:
    model, chain, _ = compressed(nnx.Embed(rows, columns, rngs=rngs()), rf.Ranks(2))
    ids = jnp.asarray([[3, 0, -1], [5, 2, -2]])
    table, linear = chain.layers
    assert off(model(ids), (table.embedding[...] @ linear.kernel[...])[ids]) < ROUNDING


def test_attend_multiplies_with_the_table_that_is_looked_up() -> None:
    _, chain, _ = compressed(nnx.Embed(13, 6, rngs=rngs()), rf.Ranks(2))
    query = normal(2, 3, 6)
    assert off(chain.attend(query), query @ np.asarray(chain(jnp.arange(13))).T) < ROUNDING


def test_a_row_beyond_the_table_is_nan_as_before() -> None:
    model, _, _ = compressed(nnx.Embed(13, 6, rngs=rngs()), rf.Ranks(2))
    assert np.isnan(np.asarray(model(jnp.asarray([13])))).all()


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("param_dtype", [jnp.float16])
def test_a_table_gives_the_dtypes_it_gave(dtype: Any, param_dtype: Any) -> None:
    layer = nnx.Embed(13, 6, dtype=dtype, param_dtype=param_dtype, rngs=rngs())
    _, chain, _ = compressed(layer, rf.Ranks(2))
    ids, query = jnp.arange(3), normal(2, 6, dtype=np.float16)
    assert chain(ids).dtype == layer(ids).dtype
    assert chain.attend(query).dtype == layer.attend(query).dtype


KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "Linear": (lambda **o: nnx.Linear(11, 7, **o), (2, 11)),
    "LinearGeneral": (lambda **o: nnx.LinearGeneral(11, (7, 3), **o), (2, 11)),
    "Einsum": (lambda **o: nnx.Einsum("bi,io->bo", (11, 7), (7,), **o), (2, 11)),
    "Conv": (lambda **o: nnx.Conv(5, 7, (3, 2), **o), (2, 9, 8, 5)),
    "ConvTranspose": (lambda **o: nnx.ConvTranspose(5, 7, (3, 2), (2, 3), **o), (2, 9, 8, 5)),
}
TOLERANCES = {jnp.float16: 3e-3, jnp.bfloat16: 2e-2}
FIRST = ["svd", "channel_svd"]


@pytest.mark.parametrize(("kind", "dtype"), list(zip(KINDS, cycle(TOLERANCES), strict=False)))
def test_low_precision_parameters_are_reproduced_in_their_dtype(kind: str, dtype: Any) -> None:
    make, shape = KINDS[kind]
    layer, x = make(param_dtype=dtype, rngs=rngs()), normal(*shape)
    model, chain, plan = compressed(layer, rf.Ranks("full"), methods=FIRST)
    assert plan.method in FIRST
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(chain))} == {jnp.dtype(dtype)}
    assert off(model(x), layer(x)) < TOLERANCES[dtype]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": jnp.float16, "preferred_element_type": jnp.float32},
        {"param_dtype": jnp.bfloat16, "dtype": jnp.float32},
    ],
    ids=["preferred", "param_dtype"],
)
def test_the_output_has_the_dtype_it_had(kind: str, options: dict[str, Any]) -> None:
    make, shape = KINDS[kind]
    layer, x = make(**options, rngs=rngs()), normal(*shape)
    model, _, plan = compressed(layer, rf.Ranks(2), methods=FIRST)
    assert plan.method in FIRST
    assert jax.eval_shape(model, x).dtype == jax.eval_shape(layer, x).dtype


def promote(*args: Any, **options: Any) -> Any:
    return nnx.nn.dtypes.promote_dtype(*args, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_computes_as_the_layer_did(kind: str) -> None:
    options = {"precision": lax.Precision.HIGHEST, "promote_dtype": promote}
    layer = KINDS[kind][0](**options, rngs=rngs())
    _, chain, _ = compressed(layer, rf.Ranks(2), methods=FIRST)
    for name, value in options.items():
        assert [getattr(stage, name) for stage in chain.layers] == [value, value]


def same_as(product: Any) -> Any:
    """A product as users write them: with no more arguments than are used."""

    def custom(*args: Any, **options: Any) -> Any:
        return product(*args, **options)

    return custom


CUSTOM = {
    "Linear": ("dot_general", same_as(lax.dot_general)),
    "LinearGeneral": ("dot_general", same_as(lax.dot_general)),
    "Einsum": ("einsum_op", same_as(jnp.einsum)),
    "Conv": ("conv_general_dilated", same_as(lax.conv_general_dilated)),
}


@pytest.mark.parametrize("kind", CUSTOM)
def test_a_custom_product_is_handed_on(kind: str) -> None:
    (make, shape), (name, product) = KINDS[kind], CUSTOM[kind]
    layer = make(**{name: product}, rngs=rngs())
    _, chain, plan = compressed(layer, rf.Ranks(2), inputs=normal(*shape), methods=FIRST)
    assert plan.method in FIRST
    assert {getattr(stage, name) for stage in chain.layers} == {product}


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


@pytest.mark.parametrize("padding", ["same", "SAME_LOWER", "valid"])
def test_paddings_that_only_the_convolution_within_a_transposed_one_knows(padding: str) -> None:
    layer = nnx.ConvTranspose(
        5, 7, (3, 4), padding=padding, kernel_dilation=2, kernel_init=initial, rngs=rngs()
    )
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 5))
    small = rf.compress(layer, rf.Ranks("full"), methods=["tucker2"], inputs=x)
    assert small.plan[""].method == "tucker2"
    np.testing.assert_allclose(small.model(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("padding", ["circular", "reflect", "causal"])
def test_paddings_of_flax_in_another_case_are_none(padding: str) -> None:
    layer = nnx.Conv(5, 7, (3,), padding=padding, kernel_init=initial, rngs=rngs())
    assert rf.plan(layer, rf.Ranks(2))[""].reason == f"padding {padding!r} is unknown"
