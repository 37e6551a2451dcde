"""Every decomposition of every op at every geometry, against the NumPy reference.

All sizes of a case are distinct, so that a transposition cannot pass.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.decompose.factorizations import METHODS, distance, factored, method, spectral

import rankfold as rf
from rankfold.decompose.base import Factorization
from rankfold.ops import Op, channels, output_extent, params
from rankfold.ops.reference import forward, reconstruct


def ops() -> dict[str, Callable[[np.random.Generator], Op]]:
    def conv(*shape: int, bias: bool = True, **geometry: object):
        def make(rng: np.random.Generator) -> Op:
            values = rng.standard_normal(shape[0]) if bias else None
            return rf.Conv(spectral(rng, *shape), values, **geometry)

        return make

    def transposed(*shape: int, bias: bool = True, **geometry: object):
        def make(rng: np.random.Generator) -> Op:
            values = rng.standard_normal(shape[0]) if bias else None
            return rf.ConvTranspose(spectral(rng, *shape), values, **geometry)

        return make

    return {
        "linear wide": lambda rng: rf.Linear(spectral(rng, 7, 11), rng.standard_normal(7)),
        "linear tall": lambda rng: rf.Linear(spectral(rng, 13, 5)),
        "linear grouped": lambda rng: rf.Linear(
            spectral(rng, 15, 7), rng.standard_normal(15), groups=3
        ),
        "linear grouped tall": lambda rng: rf.Linear(spectral(rng, 22, 5), groups=2),
        "embedding tall": lambda rng: rf.Embedding(spectral(rng, 17, 6)),
        "embedding wide": lambda rng: rf.Embedding(spectral(rng, 6, 17)),
        "conv 1×1 strided": conv(11, 7, 1, 1, stride=(2, 3), padding=((1, 0), (0, 2))),
        "conv 1-d": conv(11, 7, 5, stride=2, padding=3, dilation=2),
        "conv 2-d": conv(11, 7, 5, 3, stride=(2, 3), padding=((2, 1), (0, 3)), dilation=(1, 2)),
        "conv 2-d even": conv(11, 7, 4, 2, padding=1, bias=False),
        "conv 3-d": conv(7, 5, 3, 2, 1, stride=(1, 2, 1), padding=(1, 0, 2)),
        "conv same": conv(11, 7, 5, 4, padding="same", stride=(2, 1)),
        "conv same lower": conv(11, 7, 4, 2, padding="same_lower"),
        "conv reflect": conv(11, 7, 3, 5, padding=(1, 2), padding_mode="reflect"),
        "conv replicate": conv(11, 7, 3, 5, padding=(1, 2), padding_mode="replicate", stride=2),
        "conv circular": conv(11, 7, 3, 5, padding="same", padding_mode="circular"),
        "conv grouped": conv(15, 4, 3, 5, groups=3, padding=1, stride=2),
        "conv depthwise": conv(14, 1, 5, 3, groups=7, padding=1),
        "conv 1×k": conv(11, 7, 1, 5, padding=(0, 2)),
        "conv tall": conv(31, 3, 3, 2),
        "transposed 1-d": transposed(11, 7, 5, stride=3, padding=2, output_padding=1),
        "transposed 2-d": transposed(
            11, 7, 4, 3, stride=(2, 3), padding=(1, 0), output_padding=(1, 2), dilation=(2, 1)
        ),
        "transposed grouped": transposed(15, 4, 3, 2, groups=3, stride=2, bias=False),
        "transposed 3-d": transposed(5, 7, 2, 3, 1, stride=2),
    }


OPS = ops()
CASES = [
    (op, name)
    for op in OPS
    for name in METHODS
    if method(name).refuse(OPS[op](np.random.default_rng(0))) is None
]


def probe(op: Op, rng: np.random.Generator) -> np.ndarray:
    if isinstance(op, rf.Embedding):
        return rng.integers(0, len(op.weight), (3, 4))
    if isinstance(op, rf.Linear):
        return rng.standard_normal((3, 2, channels(op)[1]))
    spatial = (13, 17, 11)[: op.weight.ndim - 2]
    return rng.standard_normal((2, channels(op)[1], *spatial))


def reduced(op: Op, name: str) -> tuple[int, ...]:
    return tuple(max(1, most // 2) for most in method(name).max_ranks(op))


@cache
def halved(case: str, name: str) -> tuple[Op, Factorization]:
    """An op and its decomposition at about half of its ranks: the same in every test of a case."""
    op = OPS[case](np.random.default_rng(0))
    return op, factored(op, name, reduced(op, name))


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize(("case", "name"), CASES)
def test_full_rank_reproduces_the_layer(case: str, name: str, rng: np.random.Generator) -> None:
    op = OPS[case](rng)
    chain = factored(op, name, method(name).max_ranks(op)).chain
    x = probe(op, rng)
    assert distance(forward(chain, x), forward(op, x)) < 1e-12


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize(("case", "name"), CASES)
def test_reduced_rank_is_the_layer_with_the_reconstructed_weight(
    case: str, name: str, rng: np.random.Generator
) -> None:
    op, found = halved(case, name)
    chain, x = found.chain, probe(op, rng)
    expected = forward(replace(op, weight=reconstruct(op, chain)), x)
    assert distance(forward(chain, x), expected) < 1e-12


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize(("case", "name"), CASES)
def test_the_announced_error_is_the_measured_one(case: str, name: str) -> None:
    op, found = halved(case, name)
    assert found.error == pytest.approx(distance(reconstruct(op, found.chain), op.weight), abs=1e-7)


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize(("case", "name"), CASES)
def test_the_template_has_the_shapes_of_the_chain(case: str, name: str) -> None:
    op, found = halved(case, name)
    template, chain = method(name).template(op, reduced(op, name)), found.chain
    assert [s.weight.shape for s in template] == [s.weight.shape for s in chain]
    assert params(template) == params(chain)
    extent = (2, 13, 17, 11)[: max(1, op.weight.ndim - 1)]
    for stage, built in zip(template, chain, strict=True):
        assert output_extent(stage, extent) == output_extent(built, extent)
        extent = output_extent(stage, extent)


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize(("case", "name"), CASES)
def test_only_the_last_stage_has_the_bias(case: str, name: str) -> None:
    op, found = halved(case, name)
    *before, last = found.chain
    assert all(stage.bias is None for stage in before)
    assert (last.bias is None) == (op.bias is None)
    assert op.bias is None or np.array_equal(last.bias, op.bias)


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize(("case", "name"), CASES)
def test_balanced_stages_have_equal_norms(case: str, name: str) -> None:
    _, found = halved(case, name)
    norms = [np.linalg.norm(s.weight) for s in found.chain]
    assert max(norms) == pytest.approx(min(norms), rel=1e-9)


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize(("case", "name"), CASES)
def test_placements_stand_for_the_same_weight(case: str, name: str) -> None:
    op, balanced = halved(case, name)
    classical = factored(op, name, reduced(op, name), "classical")
    assert distance(*(reconstruct(op, found.chain) for found in (classical, balanced))) < 1e-12


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", METHODS)
def test_the_chain_has_the_dtype_of_the_weight(
    name: str, dtype: type, rng: np.random.Generator
) -> None:
    kernel = (1, 1) if name == "svd" else (3, 2)
    op = rf.Conv(spectral(rng, 11, 7, *kernel).astype(dtype))
    assert {stage.weight.dtype for stage in factored(op, name, reduced(op, name)).chain} == {
        np.dtype(dtype)
    }


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
@pytest.mark.parametrize("name", METHODS)
def test_the_error_does_not_depend_on_the_scale(
    name: str, scale: float, rng: np.random.Generator
) -> None:
    kernel = (1, 1) if name == "svd" else (3, 2)
    op = rf.Conv(spectral(rng, 11, 7, *kernel))
    scaled = rf.Conv(op.weight * scale)
    ranks = reduced(op, name)
    found = factored(scaled, name, ranks)
    assert found.error == pytest.approx(factored(op, name, ranks).error, rel=1e-6)
    assert distance(reconstruct(scaled, found.chain), scaled.weight) == pytest.approx(
        found.error, rel=1e-6
    )


@pytest.mark.parametrize("name", METHODS)
def test_the_error_falls_with_the_rank(name: str, rng: np.random.Generator) -> None:
    kernel = (1, 1) if name == "svd" else (3, 2)
    op = rf.Conv(spectral(rng, 13, 11, *kernel))
    most = method(name).max_ranks(op)
    errors = [
        factored(op, name, tuple(max(1, m * step // 8) for m in most)).error for step in range(1, 9)
    ]
    ridge = 2e-3 if name in ("cp", "cp3") else 1e-7
    assert all(b <= a * 1.001 + ridge for a, b in itertools.pairwise(errors))
    assert errors[-1] < 1e-7


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("damage", ["zero rows", "duplicate rows", "rank one", "zero group"])
def test_degenerate_weights_stay_finite_and_accurate(
    name: str, damage: str, rng: np.random.Generator
) -> None:
    kernel = (1, 1) if name == "svd" else (3, 2)
    weight = spectral(rng, 12, 7, *kernel)
    if damage == "zero rows":
        weight[3:8] = 0.0
    elif damage == "duplicate rows":
        weight[1:6] = weight[0]
    elif damage == "rank one":
        weight[:] = weight[:1]
    else:
        weight[6:] = 0.0
    op = rf.Conv(weight, groups=2)
    for ranks in (reduced(op, name), method(name).max_ranks(op)):
        found = factored(op, name, ranks)
        assert all(np.isfinite(stage.weight).all() for stage in found.chain)
        measured = distance(reconstruct(op, found.chain), weight)
        assert measured == pytest.approx(found.error, abs=1e-7)


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize("name", METHODS)
def test_a_decomposition_is_deterministic(name: str, rng: np.random.Generator) -> None:
    kernel = (1, 1) if name == "svd" else (3, 2)
    op = rf.Conv(spectral(rng, 11, 7, *kernel))
    once, again = (factored(op, name, reduced(op, name)).chain for _ in range(2))
    assert all(np.array_equal(a.weight, b.weight) for a, b in zip(once, again, strict=True))


@pytest.mark.usefixtures("few_sweeps")
@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_random_geometry_is_exact_at_full_rank_and_consistent_below(data: st.DataObject) -> None:
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    axes = draw(st.integers(1, 3))
    several = st.lists(st.integers(1, 3), min_size=axes, max_size=axes)
    groups = draw(st.integers(1, 3))
    shape = (groups * draw(st.integers(1, 5)), draw(st.integers(1, 5)), *draw(several))
    pairs = st.lists(st.tuples(*[st.integers(0, 2)] * 2), min_size=axes, max_size=axes)
    common = {"stride": draw(several), "dilation": draw(several), "groups": groups}
    bias = rng.standard_normal(shape[0]) if draw(st.booleans()) else None
    if draw(st.booleans()):
        string = st.sampled_from(["same", "same_lower", "valid"])
        mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        padding = draw(pairs | string)
        op = rf.Conv(rng.standard_normal(shape), bias, **common, padding=padding, padding_mode=mode)
    else:
        extra = draw(st.lists(st.integers(0, 1), min_size=axes, max_size=axes))
        op = rf.ConvTranspose(rng.standard_normal(shape), bias, **common, output_padding=extra)
    name = draw(st.sampled_from([m for m in METHODS if method(m).refuse(op) is None]))
    x = rng.standard_normal((1, channels(op)[1], *(11, 9, 10)[:axes]))
    chain = factored(op, name, method(name).max_ranks(op)).chain
    np.testing.assert_allclose(forward(chain, x), forward(op, x), atol=1e-9)
    ranks = tuple(draw(st.integers(1, most)) for most in method(name).max_ranks(op))
    chain = factored(op, name, ranks).chain
    dense = replace(op, weight=reconstruct(op, chain))
    np.testing.assert_allclose(forward(chain, x), forward(dense, x), atol=1e-9)


BAD = {
    "nan": (lambda: rf.truncated_svd(rf.Linear(np.full((5, 7), np.nan)), 2), "35 NaN or infinite"),
    "infinite": (lambda: rf.tucker2(rf.Conv(np.full((5, 7, 3), np.inf)), (2, 2)), "infinite"),
    "zero": (lambda: rf.cp(rf.Conv(np.zeros((5, 7, 3))), 2), "all zero"),
    "empty": (lambda: rf.truncated_svd(rf.Linear(np.zeros((0, 7))), 1), "rank 1 exceeds 0"),
    "rank 0": (lambda: rf.truncated_svd(rf.Linear(np.ones((5, 7))), 0), "rank 0; use at least 1"),
    "rank beyond": (
        lambda: rf.tucker2(rf.Conv(np.ones((50, 64, 3, 3))), (5, 70)),
        "rank 70 exceeds 64 input channels; use at most 64",
    ),
    "one rank of two": (lambda: rf.tucker2(rf.Conv(np.ones((5, 7, 3))), (2,)), "takes 2"),
    "float rank": (lambda: rf.cp(rf.Conv(np.ones((5, 7, 3))), 2.5), "2.5 is not an int"),
    "placement": (
        lambda: rf.truncated_svd(rf.Linear(np.ones((5, 7))), 2, placement="left"),
        "placement 'left'",
    ),
    "kernel for svd": (lambda: rf.truncated_svd(rf.Conv(np.ones((5, 7, 3))), 2), "kernel of 1"),
    "linear for tucker2": (lambda: rf.tucker2(rf.Linear(np.ones((5, 7))), (2, 2)), "use svd"),
    "1-d for spatial": (lambda: rf.spatial_svd(rf.Conv(np.ones((5, 7, 3))), 2), "2-d kernel"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_error(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(rf.RankfoldError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rf.tucker2(rf.Conv(np.ones((5, 7, 3))), 4), "ranks 4; give 2 ints"),
        (lambda: rf.truncated_svd(np.ones((5, 7)), 2), "ndarray is no op"),
    ],
    ids=["ranks", "op"],
)
def test_arguments_of_a_wrong_kind_are_a_clear_error(call: object, message: str) -> None:
    with pytest.raises(rf.RankfoldError, match=message):
        call()
