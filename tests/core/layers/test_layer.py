"""Small decisions on which results hang: what is faster, what counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from rankfold.decompose.guarded import Guarded
from rankfold.layers.layer import Layer
from rankfold.layers.settings import Settings, Usage
from rankfold.ops import Chain, Conv, Embedding, Linear, params
from rankfold.ops.interpolation import pivots_of_chain
from rankfold.plugins.registry import registry

RNG = np.random.default_rng(8)


def test_no_layer_is_offered_what_measures_slower() -> None:
    def seconds(chains: object) -> list[float]:
        return [1.0, *(0.5 if index % 2 else 1.5 for index in range(len(cast(list[Any], chains))))]

    op = Linear(RNG.standard_normal((37, 41)))
    known = registry().methods(("svd",))
    layer = Layer(("x",), lambda: op, Settings(known, "balanced", 0), Usage([(1,)], timer=seconds))
    first, faster = layer.timed_offers(layer.offers())
    assert first == 1.0
    assert faster
    assert {offer.seconds for offer in faster} == {0.5}


PAIRS = {"svd": "svd_id", "channel_svd": "channel_svd_id", "tucker2": "tucker2_id"}


@pytest.mark.parametrize("name", PAIRS)
def test_errors_of_interpolative_methods_are_estimated_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = (
        Linear(RNG.standard_normal((23, 19)))
        if name == "svd"
        else Conv(RNG.standard_normal((14, 9, 3, 5)))
    )
    estimated: list[str] = []
    usual = Guarded.error_at_ranks

    def estimate(self: Guarded, *args: Any) -> Any:
        estimated.append(self.name)
        return usual(self, *args)

    monkeypatch.setattr(Guarded, "error_at_ranks", estimate)
    methods = registry().methods((name, PAIRS[name]))
    priced = Layer(("x",), lambda: op, Settings(methods, "balanced", 0)).priced()
    assert estimated == [name]
    assert priced.losses[name] == priced.losses[PAIRS[name]]
    # At every loss the interpolative chain is cheaper, but times may tell otherwise.
    assert {offer.method for offer in priced.offers} == {PAIRS[name]}
    assert [{offer.method for offer in front} for front in priced.fronts] == [{name}, {PAIRS[name]}]


def test_layers_that_take_no_interpolative_stages_are_refused_such_methods() -> None:
    op, methods = Linear(RNG.standard_normal((23, 19))), registry().methods(("svd", "svd_id"))
    usage = Usage(not_interpolated="no such stages here")
    layer = Layer(("x",), lambda: op, Settings(methods, "balanced", 0), usage)
    assert list(layer.methods) == ["svd"]
    assert layer.refusals == {"svd_id": "no such stages here"}


def test_of_plain_and_interpolative_chains_those_are_offered_that_measure_faster() -> None:
    def seconds(chains: Sequence[Chain]) -> list[float]:
        return [1.0, *(1.5 if pivots_of_chain(chain) else 0.5 for chain in chains)]

    op, methods = Linear(RNG.standard_normal((37, 41))), registry().methods(("svd", "svd_id"))
    layer = Layer(
        ("x",), lambda: op, Settings(methods, "balanced", 0), Usage([(1,)], timer=seconds)
    )
    _, faster = layer.timed_offers(*layer.priced().fronts)
    assert {offer.method for offer in faster} == {"svd"}


def test_products_with_a_table_are_counted_for_it_and_for_its_factors() -> None:
    op = Embedding(RNG.standard_normal((50, 11)))
    attended = 7 * params(op)
    known = registry().methods(("svd",))
    layer = Layer(("x",), lambda: op, Settings(known, "balanced", 0), Usage([(4,)], attended))
    assert layer.cost(op).macs == attended
    chain = layer.methods["svd"].template(op, (3,))
    look_up = 4 * 3 * 11  # what follows the smaller table
    assert layer.cost(chain).macs == 7 * params(chain) + look_up
