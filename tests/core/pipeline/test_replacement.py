"""Moments in which something never occurs, never counts, or is very small or large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from rankfold.calibration.moments import LayerMoments
from rankfold.calibration.weighted_norm import rows_of
from rankfold.decompose.base import Factorization
from rankfold.errors import RankfoldError
from rankfold.layers.layer import Layer
from rankfold.layers.settings import Settings
from rankfold.linalg import Array
from rankfold.ops import Conv, Linear, Op, with_weight
from rankfold.ops.reference import reconstruct
from rankfold.pipeline.replacement import decide
from rankfold.plugins.registry import registry
from rankfold.policies.base import Choice

RNG = np.random.default_rng(4)
OPS: dict[str, Op] = {
    "svd": Linear(RNG.standard_normal((21, 8)), RNG.standard_normal(21), groups=3),
    "channel_svd": Conv(RNG.standard_normal((21, 5, 3, 2)), RNG.standard_normal(21), groups=3),
    "spatial_svd": Conv(RNG.standard_normal((21, 5, 3, 2)), groups=3),
    "tucker2": Conv(RNG.standard_normal((21, 5, 3, 2)), groups=3),
    "cp": Conv(RNG.standard_normal((9, 2, 3)), groups=3),
}
RANKS = {"tucker2": (3, 2)}


def _moments(op: Op, *, diagonal: bool) -> LayerMoments:
    rng = np.random.default_rng(0)
    groups, out, size = rows_of(op).shape
    half = rng.standard_normal((groups, size, size))
    grads = rng.standard_normal((groups, out, out))
    grads = grads @ grads.swapaxes(1, 2)
    if diagonal:
        grads = np.einsum("gii->gi", grads)
    mean = rng.standard_normal((groups, size))
    inputs = half @ half.swapaxes(1, 2) + mean[:, :, None] * mean[:, None, :]
    return LayerMoments(inputs, mean, grads, 300, 5.0)


def _zeroed(moment: Array, index: object, axes: tuple[int, ...]) -> Array:
    """Without one channel of the first group (or that group), in every axis it has."""
    changed = moment.copy()
    for axis in axes:
        if axis < changed.ndim:
            changed[(0, *[slice(None)] * (axis - 1), index)] = 0.0
    return changed


def _grads(index: object) -> Callable[[LayerMoments], LayerMoments]:
    return lambda m: replace(m, grads=_zeroed(np.asarray(m.grads), index, (1, 2)))


def _inputs(index: object) -> Callable[[LayerMoments], LayerMoments]:
    return lambda m: replace(
        m, inputs=_zeroed(m.inputs, index, (1, 2)), mean=_zeroed(m.mean, index, (1,))
    )


def _scaled(inputs: float, grads: float) -> Callable[[LayerMoments], LayerMoments]:
    return lambda m: replace(
        m, inputs=m.inputs * inputs**2, mean=m.mean * inputs, grads=m.grads * grads**2
    )


def _of_rank_one(m: LayerMoments) -> LayerMoments:
    return replace(m, inputs=m.mean[:, :, None] * m.mean[:, None, :] * 2.0)


def _constant(m: LayerMoments) -> LayerMoments:
    """Inputs that never vary, but for the rounding of sums in float32."""
    rng = np.random.default_rng(1)
    noise = 1e-7 * rng.standard_normal(m.inputs.shape)
    square = m.mean[:, :, None] * m.mean[:, None, :]
    return replace(m, inputs=square * (1.0 + noise + noise.swapaxes(1, 2)))


DAMAGE: dict[str, Callable[[LayerMoments], LayerMoments]] = {
    "no gradients": lambda m: replace(m, grads=np.zeros_like(m.grads)),
    "a group that never counts": _grads(slice(None)),
    "an output that never counts": _grads(2),
    "no inputs": lambda m: replace(m, inputs=m.inputs * 0.0, mean=m.mean * 0.0),
    "a group without inputs": _inputs(slice(None)),
    "a channel without inputs": _inputs(1),
    "inputs of rank one": _of_rank_one,
    "constant inputs": _constant,
    "small": _scaled(1e-30, 1e-30),
    "large": _scaled(1e30, 1e30),
    "small inputs": _scaled(1e-30, 1e30),
}


CASES = [(m, d) for m in OPS for d in DAMAGE if m != "cp" or d in ("no gradients", "small")]


@pytest.mark.parametrize(("dtype", "diagonal"), [(np.float64, False), (np.float16, True)])
@pytest.mark.parametrize(("method", "damage"), CASES)
def test_a_layer_is_decomposed_whatever_its_moments(
    method: str, damage: str, dtype: type, diagonal: bool
) -> None:
    op = with_weight(OPS[method], OPS[method].weight.astype(dtype))
    moments = DAMAGE[damage](_moments(op, diagonal=diagonal))
    known = registry().methods((method,))
    layer = Layer(("x",), lambda: op, Settings(known, "balanced", 0), moments=moments)
    candidate = layer.candidate(method, RANKS.get(method, (2,)))
    assert all(np.isfinite(stage.weight).all() for stage in candidate.chain)
    assert max(float(np.abs(stage.weight).max()) for stage in candidate.chain) < 1e3
    assert candidate.error < 1.0 or damage != "a group that never counts"
    if method != "cp":  # has no exact fit to tell of, and takes its time for offers
        assert layer.candidate(method, layer.methods[method].max_ranks(op)).error < 1e-4
        losses = [offer.loss for offer in layer.offers()]
        assert all(np.isfinite(loss) and loss >= 0.0 for loss in losses)


def test_full_rank_is_exact_where_inputs_never_vary() -> None:
    op = Linear(RNG.standard_normal((23, 14)), RNG.standard_normal(23))
    moments = _constant(_moments(op, diagonal=False))
    layer = Layer(
        ("x",), lambda: op, Settings(registry().methods(("svd",)), "balanced", 0), moments=moments
    )
    chain = layer.candidate("svd", (14,)).chain
    np.testing.assert_allclose(reconstruct(op, chain), op.weight, atol=1e-9)


@pytest.mark.parametrize("method", OPS)
def test_dead_groups_leave_the_others_what_they_were(method: str) -> None:
    op = OPS[method]
    moments = _moments(op, diagonal=False)
    live = np.asarray(moments.grads)[1:]
    losses = []
    for used in (moments, _grads(slice(None))(moments)):
        known = registry().methods((method,))
        layer = Layer(
            ("x",),
            partial(with_weight, op, op.weight),
            Settings(known, "balanced", 0),
            moments=used,
        )
        chain = layer.candidate(method, RANKS.get(method, (2,))).chain
        apart = (rows_of(with_weight(op, reconstruct(op, chain))) - rows_of(op))[1:]
        seen = moments.inputs[1:]
        losses.append(float(np.einsum("goi,gij,gpj,gop->", apart, seen, apart, live)))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_decomposition_that_gives_up_is_the_reason_of_its_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def give_up(*_: object, **__: object) -> Factorization:
        raise RankfoldError("a stage exceeds the range of float16")

    monkeypatch.setattr(type(registry().methods(("svd",))["svd"]), "decompose", give_up)
    op = OPS["svd"]
    layer = Layer(("x",), lambda: op, Settings(registry().methods(("svd",)), "balanced", 0))
    decision = decide(layer, Choice("svd", (2,)))
    assert decision.layer.method is None
    assert decision.layer.reason == "svd failed: a stage exceeds the range of float16"
    with pytest.raises(RankfoldError, match="layer 'x': svd: rank 9 exceeds 7"):
        decide(layer, Choice("svd", (9,)))
