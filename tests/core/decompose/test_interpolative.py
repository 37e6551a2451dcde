"""Chains with interpolative stages: the weights of the method underneath, at fewer parameters."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.decompose.base import decompose
from rankfold.decompose.interpolative import (
    CHANNEL_SVD_ID,
    SVD_ID,
    TUCKER2_ID,
    Interpolative,
    interpolated,
    interpolated_like,
    template_with_pivots,
    with_pivots,
)
from rankfold.errors import RankfoldError
from rankfold.ops import Conv, ConvTranspose, Embedding, Linear, Op, layout, params
from rankfold.ops.interpolation import pivots_of_chain, without_pivots
from rankfold.ops.reference import forward, reconstruct

RNG = np.random.default_rng(0)
OPS: dict[str, Op] = {
    "tall": Linear(RNG.standard_normal((23, 11)), RNG.standard_normal(23)),
    "wide": Linear(RNG.standard_normal((7, 19)).astype(np.float32)),
    "square": Linear(RNG.standard_normal((13, 13))),
    "one output": Linear(RNG.standard_normal((1, 9))),
    "table": Embedding(RNG.standard_normal((29, 8))),
    "kernel": Conv(
        RNG.standard_normal((14, 9, 3, 5)), RNG.standard_normal(14), stride=2, padding=1
    ),
    "pointwise": Conv(RNG.standard_normal((10, 6, 1)), stride=2),
    "transposed": ConvTranspose(RNG.standard_normal((12, 7, 3, 2)), stride=(2, 3), padding=1),
}
METHODS = (SVD_ID, CHANNEL_SVD_ID, TUCKER2_ID)
CASES = [
    pytest.param(method, name, id=f"{method.name}, {name}")
    for method in METHODS
    for name, op in OPS.items()
    if method.refuse(op) is None
]


def halved(method: Interpolative, op: Op) -> tuple[int, ...]:
    return tuple(max(1, rank // 2) for rank in method.max_ranks(op))


@pytest.mark.parametrize(("method", "name"), CASES)
@pytest.mark.parametrize("full", [False, True])
def test_the_weight_is_that_of_the_method_underneath(
    method: Interpolative, name: str, full: bool
) -> None:
    op = OPS[name]
    ranks = method.max_ranks(op) if full else halved(method, op)
    plain = decompose(method.method, op, ranks, "balanced")
    chain = decompose(method, op, ranks, "balanced")
    epsilon = float(np.finfo(op.weight.dtype).eps)
    dense = reconstruct(op, plain)
    assert np.abs(reconstruct(op, chain) - dense).max() <= 100 * epsilon * np.abs(dense).max()
    assert [layout(stage) for stage in chain] == [layout(s) for s in method.template(op, ranks)]
    assert params(chain) < params(plain)
    assert params(chain) <= params(op) or method is TUCKER2_ID
    for stage in chain:
        if pivots_of_chain((stage,)):
            assert np.abs(stage.weight).max() <= 2.0


@pytest.mark.parametrize(("method", "name"), CASES)
def test_the_output_is_that_of_the_method_underneath(method: Interpolative, name: str) -> None:
    op = OPS[name]
    ranks = halved(method, op)
    rng = np.random.default_rng(1)
    if isinstance(op, Embedding):
        x = rng.integers(0, len(op.weight), (2, 3))
    else:
        spatial = (8, 9)[: op.weight.ndim - 2]
        x = rng.standard_normal((2, op.weight.shape[1], *spatial))
    expected = forward(decompose(method.method, op, ranks, "balanced"), x)
    actual = forward(decompose(method, op, ranks, "classical"), x)
    assert np.allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_a_chain_of_full_rank_has_the_parameters_of_the_layer() -> None:
    for name in ("tall", "wide", "square", "kernel"):
        op = OPS[name]
        method = CHANNEL_SVD_ID if name == "kernel" else SVD_ID
        assert params(method.template(op, method.max_ranks(op))) == params(op)


def test_rank_deficient_weights_have_bounded_factors() -> None:
    weight = RNG.standard_normal((21, 3)) @ RNG.standard_normal((3, 17))
    op = Linear(weight)
    first, last = decompose(SVD_ID, op, (9,), "balanced")
    assert np.abs(last.weight).max() <= 2.0
    assert np.allclose(reconstruct(op, (first, last)), weight)


def test_layers_with_groups_are_refused() -> None:
    reason = SVD_ID.refuse(Linear(np.ones((6, 2)), groups=3))
    assert reason == "svd_id applies to layers without groups; use svd"
    assert "convolutions" in (TUCKER2_ID.refuse(OPS["tall"]) or "")


def test_kernels_of_one_position_are_better_served_by_svd_id() -> None:
    assert TUCKER2_ID.surpassed(OPS["pointwise"]) == "svd_id"
    assert TUCKER2_ID.surpassed(OPS["kernel"]) is None
    assert SVD_ID.surpassed(OPS["tall"]) is None


@pytest.mark.parametrize("method", [CHANNEL_SVD_ID, TUCKER2_ID], ids=lambda m: m.name)
def test_other_pivots_give_the_same_weight(method: Interpolative) -> None:
    op = OPS["kernel"]
    chain = decompose(method, op, halved(method, op), "balanced")
    pivots = tuple(tuple(range(len(p))) for p in pivots_of_chain(chain))
    other = with_pivots(chain, pivots)
    assert pivots_of_chain(other) == pivots
    assert np.allclose(reconstruct(op, other), reconstruct(op, chain))
    assert with_pivots(chain, pivots_of_chain(chain)) is chain


def test_pivots_that_do_not_fit_are_an_error() -> None:
    op = OPS["tall"]
    chain = decompose(SVD_ID, op, (4,), "balanced")
    for pivots, message in {
        ((0, 1, 2),): "3 pivots do not fit a stage of 23 by 4",
        ((0, 1, 2, 23),): "4 pivots do not fit",
        ((0, 1, 2, 3), (0,)): "2 lists of pivots for 1",
    }.items():
        with pytest.raises(RankfoldError, match=message):
            with_pivots(chain, pivots)
    weight = RNG.standard_normal((8, 2))
    weight[1] = weight[0]
    stages = interpolated((Linear(RNG.standard_normal((2, 5))), Linear(weight)), ["last"])
    with pytest.raises(RankfoldError, match="planned pivots do not fit these weights"):
        with_pivots(stages, [(0, 1)])
    template = SVD_ID.template(op, (4,))
    with pytest.raises(RankfoldError, match="0 lists of pivots for 1 interpolative"):
        template_with_pivots(template, ())
    with pytest.raises(RankfoldError, match="ascending"):
        template_with_pivots(template, [(0, 1, 3, 2)])
    (pivots,) = pivots_of_chain(template_with_pivots(template, [(2, 5, 7, 22)]))
    assert pivots == (2, 5, 7, 22)


def test_a_chain_is_interpolated_where_another_one_is() -> None:
    op = OPS["kernel"]
    chain = decompose(TUCKER2_ID, op, (6, 4), "balanced")
    plain = without_pivots(chain)
    again = interpolated_like(plain, chain)
    assert list(map(layout, again)) == list(map(layout, chain))
    assert np.allclose(reconstruct(op, again), reconstruct(op, chain))
    assert interpolated_like(chain, chain) is chain
    assert interpolated_like(plain, plain) is plain
