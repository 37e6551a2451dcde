"""Interpolative layers: what is stored, in which order channels are gathered, what they cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import rankfold as rf
from rankfold.errors import RankfoldError
from rankfold.ops import Conv, Linear, describe, layout, macs, params, pivots_of
from rankfold.ops.interpolation import (
    gather_order,
    is_tall,
    pivots_in,
    stored_weight,
    with_stored_weight,
    without_pivots,
)
from rankfold.ops.reference import forward


def drawn(out: int, into: int, *, conv: bool = False, bias: bool = True) -> Linear | Conv:
    rng = np.random.default_rng(out * 100 + into)
    tall, few, many = out >= into, min(out, into), max(out, into)
    pivots = tuple(sorted(map(int, rng.choice(many, few, replace=False))))
    shape = (out - into, into) if tall else (out, into - out)
    kernel = (1, 1) if conv else ()
    weight = with_stored_weight(rng.standard_normal((*shape, *kernel)), pivots, tall=tall)
    added = rng.standard_normal(out) if bias else None
    return Conv(weight, added, pivots=pivots) if conv else Linear(weight, added, pivots=pivots)


LAYERS = {
    "tall": drawn(11, 4),
    "wide": drawn(3, 13),
    "twice as many": drawn(5, 10, bias=False),
    "square": drawn(7, 7),
    "pointwise": drawn(9, 5, conv=True),
    "wide pointwise": drawn(4, 8, conv=True, bias=False),
}


@pytest.mark.parametrize("op", LAYERS.values(), ids=list(LAYERS))
def test_the_stored_weight_and_the_order_are_all_of_the_layer(op: Linear | Conv) -> None:
    tall = is_tall(op)
    order = gather_order(op)
    pivots = pivots_in(order, min(op.weight.shape[:2]), tall=tall)
    assert pivots == op.pivots
    assert np.array_equal(with_stored_weight(stored_weight(op), pivots, tall=tall), op.weight)


@pytest.mark.parametrize("op", LAYERS.values(), ids=list(LAYERS))
def test_gathering_computes_what_the_whole_weight_does(op: Linear | Conv) -> None:
    x = np.random.default_rng(1).standard_normal((3, op.weight.shape[1]))
    stored = stored_weight(op).reshape(stored_weight(op).shape[:2])
    order, rank = gather_order(op), min(op.weight.shape[:2])
    if is_tall(op):
        y = np.concatenate([x, x @ stored.T], axis=1)[:, order]
    else:
        ordered = x[:, order]
        y = ordered[:, :rank] + ordered[:, rank:] @ stored.T
    whole = Linear(op.weight.reshape(op.weight.shape[:2]))
    assert np.allclose(y, forward(whole, x))


@pytest.mark.parametrize("op", LAYERS.values(), ids=list(LAYERS))
def test_what_is_passed_on_costs_nothing(op: Linear | Conv) -> None:
    size = stored_weight(op).size
    assert params(op) == size + (0 if op.bias is None else len(op.bias))
    extent = (6,) if isinstance(op, Linear) else (2, 1, 3)
    assert macs(op, extent) == 6 * size
    (plain,) = without_pivots((op,))
    assert pivots_of(plain) is None
    assert params(plain) - params(op) == min(op.weight.shape[:2]) ** 2


def test_layouts_tell_interpolative_layers_from_others_and_not_by_their_pivots() -> None:
    op = drawn(11, 4)
    other = drawn(11, 4, bias=True)
    shifted = Linear(
        with_stored_weight(stored_weight(other), (0, 1, 2, 3), tall=True),
        op.bias,
        pivots=(0, 1, 2, 3),
    )
    assert layout(op) == layout(shifted)
    assert layout(op) != layout(replace(op, pivots=None))
    assert "interpolative" in describe(op)


EYE = np.vstack([np.eye(3), np.ones((2, 3))])
BAD = {
    "too few": (lambda: Linear(EYE, pivots=(0, 1)), "2 pivots for a weight of shape .5, 3.; use 3"),
    "out of range": (lambda: Linear(EYE, pivots=(0, 1, 5)), "ascending ints from 0 to 4"),
    "not ascending": (lambda: Linear(EYE, pivots=(1, 0, 2)), "ascending"),
    "no ints": (lambda: Linear(EYE, pivots=(0, 1, 2.0)), "ascending ints"),
    "no identity": (lambda: Linear(EYE, pivots=(0, 1, 4)), "not the identity at its pivots"),
    "groups": (lambda: Linear(np.ones((4, 2)), groups=2, pivots=(0, 1)), "pivots with 2 groups"),
    "kernel": (
        lambda: Conv(EYE[:, :, None].repeat(3, 2), pivots=(0, 1, 2)),
        r"pivots with kernel \(3,\)",
    ),
    "stride": (lambda: Conv(EYE[:, :, None], stride=2, pivots=(0, 1, 2)), r"stride \(2,\)"),
    "padding": (lambda: Conv(EYE[:, :, None], padding=1, pivots=(0, 1, 2)), "padding"),
}


@pytest.mark.parametrize("name", BAD)
def test_pivots_that_do_not_fit_are_an_error(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(RankfoldError, match=message):
        make()


def test_a_stored_weight_of_another_rank_is_an_error() -> None:
    with pytest.raises(RankfoldError, match="2 pivots do not fit a stored weight of shape"):
        with_stored_weight(np.ones((4, 3)), (0, 1), tall=True)


def test_pivots_are_optional_in_public_constructors() -> None:
    assert rf.Linear(EYE).pivots is None
