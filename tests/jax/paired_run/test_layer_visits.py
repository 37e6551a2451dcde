"""Decisions on layers: which sums a visitor is given, and what comes into the arrays."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from rankfold.calibration.moments import RegressionSums
from rankfold.ops import Chain, Linear, Op
from rankfold.testing.visits import Visits
from rankfold_jax.calibration.layer_products import LayerProduct, Layout
from rankfold_jax.calibration.patches import MatrixView
from rankfold_jax.layouts.dense import DenseForm
from rankfold_jax.layouts.parameter_index import ParameterIndex
from rankfold_jax.layouts.stacks import StackedAxes
from rankfold_jax.paired_run.layer_visits import Batch, LayerVisits

RNG = np.random.default_rng(0)
STACK = StackedAxes((0,), (3,))
INDEX = ParameterIndex(DenseForm((5,), (2,)), 0, (3, 5, 2), STACK, 1, (3, 2), STACK)
KERNEL, BIAS = (RNG.standard_normal(s).astype(np.float32) for s in ((3, 5, 2), (3, 2)))
OP = INDEX.form.op(KERNEL, BIAS)
VIEW = MatrixView((), (1,), (8, 5), True)
CLOSED = jax.make_jaxpr(lambda x: x)(KERNEL)


def visits(chain: Any) -> LayerVisits:
    return LayerVisits(
        {"a": INDEX}, [KERNEL, BIAS], {"a": OP}, Visits(chain), np.random.default_rng(0), 8
    )


def product(*groups: int) -> LayerProduct:
    """One that the first row and outputs of an equation are of these layers of the stack."""
    rows, outs = np.arange(5)[None], np.arange(2)[None]
    return LayerProduct("a", 1, VIEW, Layout(rows, outs, np.array(groups)), ())


def meet(state: LayerVisits, *groups: int) -> tuple[np.ndarray, np.ndarray]:
    x = RNG.standard_normal((8, 5)).astype(np.float32)
    y = x @ KERNEL[groups[0]]
    state.meet("a", [product(*groups)], [x], [y], [Batch(0, 8, CLOSED, [])])
    return x, y + BIAS[groups[0]]


def test_one_layer_of_a_stack_is_met_with_its_sums_and_the_rest_decided_without() -> None:
    visited: list[tuple[Any, ...]] = []

    def chain(
        path: str,
        fit: RegressionSums | None,
        validation: RegressionSums | None,
        groups: list[int] | None = None,
    ) -> Chain:
        visited.append((fit, validation, groups))
        assert groups is not None
        op = Linear(np.full((2 * len(groups), 5), 7.0), np.full(2 * len(groups), 3.0), len(groups))
        return (op,)

    state = visits(chain)
    x, y = meet(state, 1)
    fit, validation, groups = visited.pop()
    assert groups == [1]
    held_out = np.arange(8) % 4 == 3
    np.testing.assert_allclose(fit.yx[0], y[~held_out].T @ x[~held_out], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(validation.y[0], y[held_out].sum(0), rtol=1e-4, atol=1e-4)
    assert (fit.count, validation.count) == (6, 2)
    kernel, bias = (np.asarray(state.new[leaf]) for leaf in (0, 1))
    assert set(kernel[1].ravel()) == {7.0}
    assert set(bias[1]) == {3.0}
    np.testing.assert_array_equal(kernel[[0, 2]], KERNEL[[0, 2]])
    meet(state, 1)  # a layer is met once
    assert visited == []
    state.decide("a")
    assert [visit[2] for visit in visited] == [[0, 2]]
    assert visited[0][:2] == (None, None)
    assert set(np.asarray(state.new[0]).ravel()) == {7.0}
    state.decide("a")
    assert len(visited) == 1


def test_a_layer_that_stays_is_not_put_anywhere_and_measured_without_error() -> None:
    ops: list[Op] = []

    def chain(path: str, *sums: Any) -> Chain:
        ops.append(OP)
        return (OP,)

    state = visits(chain)
    state.decide("a")
    assert state.new == {}
    y = RNG.standard_normal((8, 2)).astype(np.float32)
    state.measure(product(1), y, y)
    assert state.errors["a"].value == 0
    state.measure(product(1), y, 2 * y)
    assert state.errors["a"].value == pytest.approx(
        np.linalg.norm(y) / np.sqrt(2) / np.linalg.norm(y + BIAS[1]), rel=1e-5
    )


def test_a_chain_that_flax_has_not_leaves_the_layer_as_it_is() -> None:
    state = visits(lambda *visit: (Linear(np.ones((4, 5))), Linear(np.ones((6, 4)))))
    state.decide("a")
    assert state.new == {}
    y = RNG.standard_normal((8, 2)).astype(np.float32)
    state.measure(product(1), y, y)
    assert state.errors == {}
