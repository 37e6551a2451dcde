from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rankfold_numpy.adapter import NumpyAdapter, walk
from rankfold_numpy.framework import Dense, Model
from tests.core.numpy_models import kernel, model, session_of

from rankfold.errors import RankfoldError
from rankfold.ops import Linear, blank
from rankfold.pipeline.calibrate import Calibrated
from rankfold.pipeline.model_layers import layer_paths, read_layers

X = np.random.default_rng(3).standard_normal((32, 40)).astype(np.float32)


def test_a_shared_layer_has_all_of_its_paths() -> None:
    layer = Dense(kernel(30, 30))
    session = session_of(Model([Dense(kernel(40, 30)), layer, layer]))
    assert layer_paths(session) == {"0": ("0",), "1": ("1", "2")}


def test_layers_are_read_once_and_those_that_cannot_be_have_a_reason() -> None:
    tied = kernel(30, 30)
    network = Model([Dense(kernel(40, 30)), Dense(tied), Dense(tied)])
    session = session_of(network, inputs=X)
    layers = read_layers(session, Calibrated(), layer_paths(session))
    assert list(layers.layers) == ["0"]
    assert layers.refusals == {
        "1": "tied: its kernel is also that of '2'",
        "2": "tied: its kernel is also that of '1'",
    }
    layer = layers.layers["0"]
    assert layer.calls == 1
    assert layer.costs.before.macs == 32 * 40 * 30


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda layer: layer.kernel.fill(np.nan), "NaN or infinite"),
        (lambda layer: layer.kernel.fill(0.0), "all zero"),
        (lambda layer: layer.bias.fill(np.inf), "the bias has 20 NaN or infinite values of 20"),
        (
            lambda layer: vars(layer).update(kernel=blank(30, 20)),
            "it has only a shape, no values",
        ),
    ],
    ids=["values", "zero", "bias", "blank"],
)
def test_a_layer_of_bad_values_is_counted_and_has_a_reason(change: Any, reason: str) -> None:
    class Blank(NumpyAdapter):
        def read(self, network: Any, path: str) -> Any:
            layer = dict(walk(network))[path]
            return Linear(layer.kernel.T, layer.bias)

    network = Model([Dense(kernel(40, 30)), Dense(kernel(30, 20), np.zeros(20, np.float32))])
    change(network.layers[1])
    session = session_of(network, adapter=Blank())
    layers = read_layers(session, Calibrated(), layer_paths(session))
    assert layers.unfit.keys() == {"1"}
    assert reason in layers.unfit["1"]
    assert layers.layers["1"].costs.before.params == 620


def test_layers_that_look_alike_are_timed_once() -> None:
    timed: list[str] = []

    class Times(NumpyAdapter):
        def seconds(self, network: Any, path: str, chains: Any, extents: Any) -> tuple[float, ...]:
            timed.append(path)
            return (1.0, *(0.5 for _ in chains))

        def model_seconds(self, networks: Any, inputs: Any) -> tuple[float, ...]:
            return (1.0,)

    network = Model([Dense(kernel(40, 40)), Dense(kernel(40, 40)), Dense(kernel(40, 30))])
    session = session_of(network, adapter=Times(), inputs=X)
    layers = read_layers(session, Calibrated(), layer_paths(session)).layers
    for layer in layers.values():
        _, faster = layer.timed_offers(layer.offers())
        assert faster
    assert timed == ["0", "2"]


def test_an_adapter_without_a_clock_is_named() -> None:
    session = session_of(model(40, 30), inputs=X)
    (layer,) = read_layers(session, Calibrated(), layer_paths(session)).layers.values()
    with pytest.raises(RankfoldError, match="layer '0': NumpyAdapter measures no times; use macs="):
        layer.timed_offers(layer.offers())
