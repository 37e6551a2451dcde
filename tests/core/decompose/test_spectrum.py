"""A result does not depend on what was computed before: caches change the time, never a value."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.calibration.moments import LayerMoments
from rankfold.calibration.weighted_norm import rows_of
from rankfold.decompose.base import Unfolding
from rankfold.decompose.spectrum import Side, Spectrum
from rankfold.layers.layer import Layer
from rankfold.layers.settings import Settings
from rankfold.linalg import Array, subspaces
from rankfold.ops import Chain, Conv, Embedding, Linear, Op
from rankfold.plugins.registry import registry
from rankfold.policies.energy import Energy
from rankfold.policies.ratio import Ratio

RNG = np.random.default_rng(2)


def decaying(*shape: int) -> Array:
    weight = RNG.standard_normal(shape)
    for axis, size in enumerate(shape):
        weight *= np.geomspace(1.0, 0.02, size).reshape(-1, *[1] * (len(shape) - 1 - axis))
    return weight


OPS: dict[str, tuple[Op, str]] = {
    "wide": (Linear(decaying(48, 61), RNG.standard_normal(48)), "svd"),
    "tall": (Linear(decaying(67, 52)), "svd"),
    "grouped": (Linear(decaying(86, 47), groups=2), "svd"),
    "table": (Embedding(decaying(71, 44)), "svd"),
    "channels": (Conv(decaying(57, 19, 3, 2)), "channel_svd"),
    "spatial rows": (Conv(decaying(21, 31, 3, 2)), "spatial_svd"),
    "spatial columns": (Conv(decaying(31, 17, 3, 2)), "spatial_svd"),
    "tucker": (Conv(decaying(58, 41, 2, 1)), "tucker2"),
    "cp": (Conv(decaying(7, 5, 2, 3)), "cp"),
}


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of the order of these are treated as those of a thousand are."""
    monkeypatch.setattr(subspaces, "LARGE", 40)
    monkeypatch.setattr(subspaces, "_SAMPLED", 40)


def moments_of(op: Op) -> LayerMoments:
    rng = np.random.default_rng(1)
    groups, out, size = rows_of(op).shape
    if isinstance(op, Embedding):
        share = rng.uniform(0.1, 1.0, (1, size))
        return LayerMoments(share, share, None, 500, 1.0)
    half = rng.standard_normal((groups, size, size)) * np.geomspace(1.0, 0.1, size)
    grads = rng.standard_normal((groups, out, out))
    moment, grad = half @ half.swapaxes(1, 2), grads @ grads.swapaxes(1, 2)
    return LayerMoments(moment, moment[:, 0] * 0.0, grad, 500, 1.0)


def layer_of(name: str, *, data: bool, methods: tuple[str, ...] = ()) -> Layer:
    op, method = OPS[name]
    moments = moments_of(op) if data else None
    known = registry().methods(methods or (method,))
    return Layer(("x",), lambda: op, Settings(known, "balanced", 5), moments=moments)


def everything_asked(layer: Layer, method: str) -> None:
    """Whatever can be looked at, with releases in between."""
    sides: list[Side] = ["output", "input"]
    if method == "spatial_svd":
        sides += ["spatial_rows", "spatial_columns"]
    for side in sides:
        layer.spectrum.values(side)
        layer.spectrum.eigen(side)
    layer.offers(4)
    layer.release()
    list(Energy(0.7).allocate([layer]))
    layer.candidate(method, layer.methods[method].max_ranks(layer.op))
    layer.offers()


def weights(chain: Chain) -> list[bytes]:
    return [
        array.tobytes()
        for stage in chain
        for array in (stage.weight, stage.bias)
        if array is not None
    ]


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_a_candidate_is_the_same_whatever_was_asked_before(name: str, data: bool) -> None:
    _, method = OPS[name]
    fresh, used = layer_of(name, data=data), layer_of(name, data=data)
    everything_asked(used, method)
    for share in (0.1, 0.5) if method != "cp" else (0.1,):
        ranks = tuple(max(1, round(share * m)) for m in fresh.methods[method].max_ranks(fresh.op))
        first, second = fresh.candidate(method, ranks), used.candidate(method, ranks)
        assert weights(first.chain) == weights(second.chain)
        assert (first.error, first.loss, first.output) == (second.error, second.loss, second.output)


@pytest.mark.parametrize("multiple_of", [1, 4])
def test_the_offers_of_one_method_are_not_those_of_all(multiple_of: int) -> None:
    layer = layer_of("channels", data=False, methods=("channel_svd", "tucker2"))
    layer.offers(multiple_of)
    alone = layer.with_method("tucker2").offers(multiple_of)
    assert {offer.method for offer in alone} == {"tucker2"}
    again = layer_of("channels", data=False, methods=("tucker2",)).offers(multiple_of)
    assert alone == again


@pytest.mark.parametrize("name", ["wide", "tall", "table"])
def test_a_share_of_the_channels_takes_no_eigenpairs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name_of_all in ("values", "eigen"):
        monkeypatch.setattr(Spectrum, name_of_all, lambda *_: pytest.fail("all eigenpairs"))
    layer = layer_of(name, data=False)
    (choice,) = Ratio(0.1).allocate([layer])
    assert layer.candidate("svd", choice.ranks).error < 1.0


@pytest.mark.parametrize("name", ["wide", "tall", "grouped", "channels", "spatial rows"])
def test_offers_of_a_matrix_take_eigenvalues_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np.linalg, "eigh", lambda *_: pytest.fail("eigenvectors"))
    assert layer_of(name, data=False).offers()


def test_values_and_vectors_share_a_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    multiplied: list[tuple[int, ...]] = []
    usual = subspaces.gram

    def gram(matrices: Array) -> Array:
        multiplied.append(matrices.shape)
        return usual(matrices)

    monkeypatch.setattr(subspaces, "gram", gram)
    spectrum = Spectrum(OPS["tall"][0])
    values, eigen = spectrum.values("input"), spectrum.eigen("input")
    assert multiplied == [(1, 52, 67)]
    assert np.allclose(values, eigen.values, atol=1e-12 * values.max())


def test_a_mode_may_come_with_its_values_or_with_a_way_to_them() -> None:
    values = np.ones((1, 3))
    assert Unfolding(values, (3, 4), 3, 1.0).values is values
    assert Unfolding(lambda: values, (3, 4), 3, 1.0).values is values
