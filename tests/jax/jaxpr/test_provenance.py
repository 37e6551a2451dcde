"""Labels of values that are parameters moved about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from tests.jax.jaxpr.constructs import W, X

from rankfold import RankfoldError
from rankfold_jax.jaxpr import dataflow as jaxprs
from rankfold_jax.jaxpr.parameter_uses import product
from rankfold_jax.jaxpr.provenance import Label, Provenance, moved, sliced_by_scan


def test_an_unknown_version_of_jax_is_a_clear_error() -> None:
    closed, _ = jaxprs.traced(lambda p, x: x @ p["w"], {"w": W}, X)
    (eqn,) = (e for e in closed.jaxpr.eqns if e.primitive.name == "dot_general")
    bare = eqn.replace(params={})
    with pytest.raises(RankfoldError, match="cannot read its jaxprs; use an older jax"):
        product(bare, [None, Provenance("w")], 1)


def labelled(function: Callable[..., Any], shape: tuple[int, ...]) -> Label:
    """The label of what a function of a parameter gives."""
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, np.float32))
    label: Label = Provenance("w", axes=tuple(range(len(shape))))
    for eqn in closed.jaxpr.eqns:
        label = moved(eqn, [label, *(None for _ in eqn.invars[1:])])
    return label


@pytest.mark.parametrize(
    ("function", "shape", "expected"),
    [
        (lambda w: w.T, (5, 5), Provenance("w", axes=(1, 0))),
        (lambda w: lax.rev(w, (0,)), (5, 5), Provenance("w", axes=(0, 1))),
        (lambda w: w.astype(jnp.float16), (3, 5), Provenance("w", axes=(0, 1))),
        (lambda w: w[:, None], (3, 5), Provenance("w", axes=(0, None, 1))),
        (lambda w: w.reshape(15), (3, 5), Provenance("w", axes=None)),
        (
            lambda w: lax.slice(w, (0, 2), (3, 3)),
            (3, 5),
            Provenance("w", slices=5, axes=(0, 1), taken=(1,)),
        ),
        (lambda w: w + 1, (3, 5), None),
        (lambda w: lax.broadcast_in_dim(w, (2, 3, 5), (1, 2)), (3, 5), None),
        (lambda w: lax.slice(w, (0, 0), (3, 2)), (3, 5), None),
    ],
)
def test_a_label_follows_what_keeps_the_numbers(
    function: Callable[..., Any], shape: tuple[int, ...], expected: Label
) -> None:
    assert labelled(function, shape) == expected


def test_two_labelled_operands_leave_none() -> None:
    (eqn,) = jax.make_jaxpr(lambda w: w.T)(W).jaxpr.eqns
    assert moved(eqn, [Provenance("w"), Provenance("v")]) is None
    assert moved(eqn, [None]) is None


def test_a_scan_takes_slices_of_the_first_axis() -> None:
    labels = [Provenance("w", axes=(2, 0, 1)), None, Provenance("v", slices=3)]
    assert sliced_by_scan(labels, 4) == [
        Provenance("w", slices=4, axes=(0, 1), taken=(2,)),
        None,
        Provenance("v", slices=12, axes=None, taken=(None,)),
    ]
