"""The gradient of zeros beside a value is the moment of the gradients at the value."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankfold_jax.calibration.gradient_moment import gradient_moment_tap


def gram(gradient: jax.Array) -> jax.Array:
    return jnp.einsum("ngo,ngp->gop", gradient, gradient)


def test_moments_are_added_up_over_the_groups_and_gradients_pass_on() -> None:
    rng = np.random.default_rng(0)
    y, noise = rng.standard_normal((2, 7, 2, 3)).astype(np.float32)
    groups = ((0, 2), (2, 1))

    def loss(y: Any, zeros: Any) -> Any:
        first = gradient_moment_tap(gram, y, zeros, jnp.asarray(groups[0]))
        second = gradient_moment_tap(gram, 2 * first, zeros, jnp.asarray(groups[1]))
        return (second * noise).sum()

    zeros = np.zeros((4, 3, 3), np.float32)
    value, (through, moments) = jax.value_and_grad(loss, (0, 1))(y, zeros)
    assert float(value) == pytest.approx(float((2 * y * noise).sum()), abs=1e-4)
    np.testing.assert_allclose(through, 2 * noise, rtol=1e-6)
    expected = np.zeros((4, 3, 3))
    for gradient, into in ((2 * noise, groups[0]), (noise, groups[1])):
        for index, group in enumerate(into):
            expected[group] += gradient[:, index].T @ gradient[:, index]
    np.testing.assert_allclose(moments, expected, rtol=1e-5)
