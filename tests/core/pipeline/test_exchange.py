from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rankfold_numpy.adapter import NumpyAdapter
from rankfold_numpy.framework import Dense, Model
from tests.core.numpy_models import model

from rankfold.adapters.capabilities import capabilities
from rankfold.pipeline.exchange import replaced, replaced_where_possible

X = np.random.default_rng(3).standard_normal((32, 40)).astype(np.float32)


class Holding(NumpyAdapter):
    """An adapter that finds out one layer a round that it cannot do without."""

    def __init__(self, *at_work: str) -> None:
        self.at_work = list(at_work)
        self.rounds: list[list[str]] = []

    def replaced(
        self, network: Any, modules: Mapping[str, Any], *, inplace: bool
    ) -> tuple[Any, Mapping[str, str]]:
        self.rounds.append(list(modules))
        for path in self.at_work:
            if path in modules:
                return None, {path: f"{path} is at work"}
        return super().replace(network, modules, inplace=inplace), {}


MODULES = {path: Model([Dense(np.zeros((1, 1)))]) for path in ("0", "1", "2")}


def test_layers_that_stay_at_work_are_left_alone_round_by_round() -> None:
    adapter, network = Holding("2", "0"), model(40, 30, 20, 10)
    small, left = replaced_where_possible(capabilities(adapter), network, MODULES, inplace=False)
    assert left == {"2": "2 is at work", "0": "0 is at work"}
    assert adapter.rounds == [["0", "1", "2"], ["0", "1"], ["1"]]
    assert [type(layer).__name__ for layer in small.layers] == ["Dense", "Model", "Dense"]
    assert [type(layer).__name__ for layer in network.layers] == ["Dense"] * 3


def test_an_adapter_that_checks_nothing_replaces_all_of_them() -> None:
    network = model(40, 30, 20, 10)
    small, left = replaced(capabilities(NumpyAdapter()), network, MODULES, inplace=True)
    assert small is network
    assert left == {}
    assert network.layers == list(MODULES.values())
