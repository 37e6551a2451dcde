"""Moments summed while a jaxpr is run, against those of NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax import lax
from tests.jax.jaxpr.constructs import CONSTRUCTS, STACK, W, X

from rankfold_jax.calibration.moment_interpreter import Gatherer, empty_moment_tap
from rankfold_jax.jaxpr import dataflow as jaxprs
from rankfold_jax.layouts.base import LayerLayout
from rankfold_jax.layouts.conv import ConvForm
from rankfold_jax.layouts.dense import DenseForm
from rankfold_jax.layouts.parameter_index import ParameterIndex
from rankfold_jax.layouts.stacks import StackedAxes


def gathered(
    function: Callable[..., Any], kernel: Any, x: Any, form: LayerLayout | None = None
) -> tuple[Any, np.ndarray]:
    """Under jit: what a function of ({"w": kernel}, x) gives, and Σ x xᵀ of its products."""
    form = form or DenseForm((5,), (5,))
    axes = kernel.ndim - len(form.kernel_shape)
    parameter = ParameterIndex(
        form, 0, kernel.shape, StackedAxes(tuple(range(axes)), kernel.shape[:axes])
    )
    op = form.op(parameter.stack.to_front(kernel), None)
    closed, tree = jaxprs.traced(function, {"w": kernel}, x)

    @jax.jit
    def run(*values: Any) -> Any:
        gatherer = Gatherer(
            {"w": parameter}, {"w": op}, 1, jax.random.key(0), {"w": empty_moment_tap(op)}, {}
        )
        return gatherer.run(closed, values)

    outputs, sums = run(kernel, x)
    return jax.tree.unflatten(tree, outputs), np.asarray(sums["w"]["inputs"])


@pytest.mark.parametrize("name", list(CONSTRUCTS))
def test_moments_are_those_of_the_inputs(name: str) -> None:
    function, _, inputs = CONSTRUCTS[name]
    output, sums = gathered(function, W, X)
    expected = sum(x.T @ x for x in inputs)
    np.testing.assert_allclose(sums[0], expected, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(output), jax.tree.leaves(function({"w": W}, X)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_moments_of_a_scanned_stack_are_kept_apart() -> None:
    def function(p: Any, x: Any) -> Any:
        return lax.scan(lambda c, w: (c @ w, None), x, p["w"])[0]

    _, sums = gathered(function, STACK, X)
    x = X
    for index, weight in enumerate(STACK):
        np.testing.assert_allclose(sums[index], x.T @ x, rtol=1e-4, atol=1e-5)
        x = x @ weight


def test_products_in_the_test_of_a_loop_are_summed() -> None:
    def function(p: Any, x: Any) -> Any:
        def test(state: Any) -> Any:
            return (state[0] < 3) & ((state[1] @ p["w"]).sum() < 1e9)

        return lax.while_loop(test, lambda state: (state[0] + 1, state[1] * 2), (0, x))

    output, sums = gathered(function, W, X)
    np.testing.assert_allclose(sums[0], X.T @ X * (1 + 4 + 16 + 64), rtol=1e-5)
    np.testing.assert_allclose(output[1], X * 8)


def test_a_reduction_is_no_call_of_its_computation() -> None:
    def function(p: Any, x: Any) -> Any:
        return x @ p["w"], lax.reduce(p["w"], np.float32(0), lambda a, b: a + 2 * b, (0,))

    (_, reduced), _ = gathered(function, W, X)
    np.testing.assert_allclose(reduced, function({"w": W}, X)[1], rtol=1e-6)


def test_moments_of_shared_weights_are_summed() -> None:
    _, sums = gathered(lambda p, x: (x @ p["w"]) @ p["w"], W, X)
    y = X @ W
    np.testing.assert_allclose(sums[0], X.T @ X + y.T @ y, rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_moments_of_a_convolution_are_those_of_its_patches(
    groups: int, stride: int, dilation: int
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 11, 7, 6)).astype(np.float32)
    kernel = rng.standard_normal((3, 2, 6 // groups, 8)).astype(np.float32)

    def function(p: Any, x: Any) -> Any:
        return lax.conv_general_dilated(
            x,
            p["w"],
            (stride, 1),
            ((1, 0), (0, 2)),
            rhs_dilation=(1, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    form = ConvForm((3, 2), 6, 8, (stride, 1), ((1, 0), (0, 2)), (1, dilation), groups)
    output, sums = gathered(function, kernel, x, form)
    padded = np.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)))
    height, width = output.shape[1:3]
    expected = np.zeros((groups, 6 * 6 // groups, 6 * 6 // groups))
    for group in range(groups):
        part = padded[..., group * 6 // groups : (group + 1) * 6 // groups]
        for i in range(height):
            for j in range(width):
                patch = part[:, i * stride : i * stride + 3, j : j + dilation + 1 : dilation]
                rows = patch.transpose(0, 3, 1, 2).reshape(2, -1)
                expected[group] += rows.T @ rows
    np.testing.assert_allclose(sums, expected, rtol=1e-4, atol=1e-4)
