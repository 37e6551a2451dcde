"""Losses on outputs, against NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankfold.calibration.batches import Calibration
from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold_jax.functional import losses


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "rows"), [((6, 5), (6, 5)), ((6, 7, 5), (42, 5)), ((6,), (6, 1)), ((5,), (1, 5))]
)
def test_where_the_classes_are(shape: tuple[int, ...], rows: tuple[int, int]) -> None:
    x = jnp.asarray(normal(*shape))
    for outputs in (x, (x, 3), {"logits": x}, [{"logits": x}]):
        assert losses.logits(outputs, 6).shape == rows
    with pytest.raises(RankfoldError, match="no logits"):
        losses.logits({"other": x}, 6)
    with pytest.raises(RankfoldError, match="floating-point"):
        losses.floats([jnp.arange(3)])


def test_a_drawn_loss_has_gradients_of_unit_moment() -> None:
    outputs, key = jnp.asarray(normal(3, 4)), jax.random.key(0)
    gradient = jax.grad(lambda y: losses.drawn("outputs", [y, {"n": 1}], 3, key))(outputs)
    again = jax.grad(lambda y: losses.drawn("outputs", [2 * y], 3, key))(outputs)
    np.testing.assert_allclose(again, 2 * gradient, rtol=1e-6)
    assert len(set(np.asarray(gradient).ravel().tolist())) == 12
    first, second = (
        jax.grad(lambda y: losses.drawn("outputs", y, 3, key))((outputs, outputs))[i]
        for i in (0, 1)
    )
    assert not np.allclose(first, second)  # each output has noise of its own


def test_a_drawn_label_has_the_gradient_of_cross_entropy() -> None:
    scores = jnp.asarray(normal(6, 5))
    gradient = np.asarray(
        jax.grad(lambda y: losses.drawn("cross_entropy", y, 6, jax.random.key(1)))(scores)
    )
    shares = np.exp(np.asarray(scores))
    shares /= shares.sum(1, keepdims=True)
    labels = shares - gradient
    np.testing.assert_allclose(np.sort(labels, 1), np.eye(1, 5, 4).repeat(6, 0), atol=1e-6)
    single = jnp.asarray(normal(6))
    gradient = np.asarray(
        jax.grad(lambda y: losses.drawn("cross_entropy", y, 6, jax.random.key(1)))(single)
    )
    labels = 1 / (1 + np.exp(-np.asarray(single))) - gradient
    np.testing.assert_allclose(labels * (1 - labels), 0, atol=1e-6)


def test_distances_are_those_of_numpy_and_nothing_for_what_is_not_finite() -> None:
    a, b = (np.asarray(normal(6, 5, seed=i), np.float64) for i in (0, 1))
    apart = losses.distance("outputs", [jnp.asarray(a)], [jnp.asarray(b)], 6)
    assert float(apart) == pytest.approx(np.square(a - b).sum() / np.square(a).sum(), rel=1e-5)
    p, q = (v - np.log(np.exp(v).sum(1, keepdims=True)) for v in (a, b))
    apart = losses.distance("cross_entropy", jnp.asarray(a), jnp.asarray(b), 6)
    assert float(apart) == pytest.approx((np.exp(p) * (p - q)).sum(1).mean(), rel=1e-4)
    masked = np.where(np.arange(5) == 2, -np.inf, a)
    assert float(losses.distance("outputs", jnp.asarray(masked), jnp.asarray(masked), 6)) == 0
    assert float(losses.distance("cross_entropy", jnp.asarray(masked), jnp.asarray(masked), 6)) == 0
    with pytest.raises(RankfoldError, match=r"\(6, 5\)"):
        losses.distance("outputs", jnp.asarray(a), jnp.asarray(b[:, :4]), 6)


@pytest.mark.parametrize(
    ("value", "what"),
    [(3.0, "float"), (jnp.ones(2), r"shape \(2,\)"), (jnp.ones((), int), "shape")],
)
def test_a_loss_of_the_user_gives_one_number(value: Any, what: str) -> None:
    calibration = Calibration.of([normal(4, 3)], None, lambda outputs, batch: value)
    with pytest.raises(RankfoldError, match=f"gave .*{what}.*one element"):
        losses.loss_of(calibration, 0, None, calibration.batches[0])
