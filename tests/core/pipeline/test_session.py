from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rankfold_numpy.adapter import NumpyAdapter
from tests.core.numpy_models import model, session_of

from rankfold.adapters.base import Trace
from rankfold.errors import RankfoldError, Refused
from rankfold.ops import params
from rankfold.pipeline.session import INTERPOLATIVE, METHODS, check_seed, settings_of

X = np.random.default_rng(3).standard_normal((32, 40)).astype(np.float32)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "0", None])
def test_a_seed_that_is_none_is_named(seed: object) -> None:
    with pytest.raises(RankfoldError, match=r"seed .*; use an int from 0 to 2\*\*63 - 1"):
        check_seed(seed)


def test_default_methods_are_without_interpolative_ones_unless_they_are_allowed() -> None:
    assert tuple(settings_of(None, "balanced", 0).methods) == METHODS
    allowed = settings_of(None, "balanced", 0, interpolative=True)
    assert tuple(allowed.methods) == (*METHODS, *INTERPOLATIVE)
    assert list(settings_of("cp", "balanced", 0, interpolative=True).methods) == ["cp"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, "left", 0), "placement 'left'; use 'balanced' or 'classical'"),
        ((5, "balanced", 0), "methods: 5; give names"),
        ((["magic"], "balanced", 0), "methods: 'magic' is unknown"),
        ((None, "balanced", 0, 3), r"executor: int; give a concurrent\.futures\.Executor"),
    ],
)
def test_settings_that_are_none_are_named(arguments: Any, message: str) -> None:
    with pytest.raises(RankfoldError, match=message):
        settings_of(*arguments)


def test_a_session_knows_the_layers_and_the_size_and_traces_only_on_inputs() -> None:
    session = session_of(model(40, 30, 20))
    assert session.trace is None
    assert dict(session.layer_classes) == {"0": "Dense", "1": "Dense"}
    assert session.size == 40 * 30 + 30 * 20
    traced = session_of(model(40, 30, 20), inputs=X)
    assert traced.trace is not None
    assert traced.trace.extents["1"] == ((32,),)
    assert not traced.uncounted("1")


def test_the_trace_comes_before_the_layers_are_listed() -> None:
    order: list[str] = []

    class Ordered(NumpyAdapter):
        def trace(self, network: Any, inputs: Any) -> Trace:
            order.append("trace")
            return super().trace(network, inputs)

        def layers(self, network: Any) -> dict[str, str]:
            order.append("layers")
            return super().layers(network)

    session_of(model(40, 30), adapter=Ordered(), inputs=X)
    assert order[0] == "trace"
    assert "layers" in order[1:]


def test_the_reason_of_the_layer_comes_before_that_of_the_trace() -> None:
    class Refuses(NumpyAdapter):
        def trace(self, network: Any, inputs: Any) -> Trace:
            return Trace({}, {"0": "by the trace", "1": "by the trace"})

        def read(self, network: Any, path: str) -> Any:
            if path == "0":
                raise Refused("by the layer")
            return super().read(network, path)

    session = session_of(model(40, 30, 20, 10), adapter=Refuses(), inputs=X)
    for path, reason in (("0", "by the layer"), ("1", "by the trace")):
        with pytest.raises(Refused, match=reason):
            session.read(path)
    assert session.read("2").weight.shape == (10, 20)


def test_what_the_adapter_does_not_offer_has_a_plain_answer() -> None:
    session = session_of(model(40, 30))
    op = session.read("0")
    assert session.reader("0") is None
    assert session.folded("0") == ""
    assert session.parameters("0", op) == params(op)
    assert session.not_interpolated("0") == "NumpyAdapter builds no interpolative stages"
    with pytest.raises(RankfoldError, match="NumpyAdapter measures no times; use macs="):
        session.model_seconds()
