"""General linear layers, einsums and tables: read, decomposed and built again."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from tests.jax.layouts.layers import ROUNDING, compressed, drawn, filled, initial, normal, off, rngs

import rankfold as rf


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
        places = [position - ndim for position in places]
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
