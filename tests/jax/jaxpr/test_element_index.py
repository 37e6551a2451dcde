"""Places of a parameter's numbers in values that they are moved to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax import lax

from rankfold_jax.jaxpr.element_index import IndexedValue, label_of, moved_by

W = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)


def followed(function: Callable[..., Any], value: IndexedValue) -> IndexedValue | None:
    """What becomes of a value in a function of equations with one operand."""
    index = value.index
    assert index is not None
    shape = index.shape[len(value.counters) :]
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, np.float32))
    for eqn in closed.jaxpr.eqns:
        if value is not None:
            value = moved_by(eqn, [value], [None])  # type: ignore[assignment]
    return value


@pytest.mark.parametrize(
    "function",
    [
        lambda w: w.transpose(2, 0, 1),
        lambda w: lax.rev(w.reshape(12, 5), (0,)),
        lambda w: w.astype(np.float16)[None],
        lambda w: lax.slice(w, (1, 0, 0), (2, 3, 5)),
        lambda w: lax.squeeze(lax.slice(w, (3, 0, 0), (4, 3, 5)), (0,)).T,
    ],
)
def test_the_index_says_where_each_number_comes_from(function: Callable[..., Any]) -> None:
    value = followed(function, IndexedValue.whole(7, W.shape))
    assert value is not None
    assert value.index is not None
    assert value.label.leaf == 7
    result = np.asarray(function(W), np.float16)
    np.testing.assert_array_equal(W.reshape(-1)[value.index].astype(np.float16), result)


def test_a_slice_of_a_scan_is_known_by_its_number_or_counted() -> None:
    whole = IndexedValue.whole(0, W.shape)
    known, counted = whole.sliced(4, 2), whole.sliced(4, "traced")
    assert known.index is not None
    np.testing.assert_array_equal(W.reshape(-1)[known.index], W[2])
    assert (counted.counters, counted.label.slices) == (("traced",), 4)
    turned = followed(lambda w: w.T, counted)
    assert turned is not None
    assert turned.index is not None
    np.testing.assert_array_equal(W.reshape(-1)[turned.index], W.transpose(0, 2, 1))


def test_computed_values_and_unknown_places_are_not_followed() -> None:
    assert followed(lambda w: w * 2, IndexedValue.whole(0, W.shape)) is None
    assert label_of(None) is None
    closed = jax.make_jaxpr(lambda w, i: lax.dynamic_slice(w, (i, 0, 0), (1, 3, 5)))(W, 1)
    eqn = next(e for e in closed.jaxpr.eqns if e.primitive.name == "dynamic_slice")
    whole = IndexedValue.whole(0, W.shape)
    inside = [whole, None, None, None]
    fixed = moved_by(eqn, inside, [None, np.int32(3), np.int32(0), np.int32(0)])
    assert fixed is not None
    assert fixed.index is not None
    np.testing.assert_array_equal(W.reshape(-1)[fixed.index], W[3:])
    places: list[Any] = []

    def traced(i: Any) -> Any:
        places.append(moved_by(eqn, inside, [None, i, np.int32(0), np.int32(0)]))
        return i

    jax.make_jaxpr(traced)(1)
    assert places[0].index is None
    assert places[0].label.slices == 4
