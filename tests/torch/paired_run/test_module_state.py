"""Attributes that modules set, for each run as that run left them."""

from typing import Any

import pytest
import torch
from torch import nn

from rankfold_torch.paired_run.module_state import PerRunState


def model() -> Any:
    layer: Any = nn.Linear(5, 3)
    layer.register_buffer("cache", torch.zeros(2))
    layer.count = 0
    return nn.Sequential(layer)


def test_every_run_finds_its_own_values_and_the_model_its_first() -> None:
    net = model()
    layer, cache = net[0], net[0].cache
    state = PerRunState(net)
    with state.noticing():
        with state.of("a"):
            layer.count, layer.cache, layer.late = 1, torch.ones(2), "a"
        assert (layer.count, layer.cache is cache, hasattr(layer, "late")) == (0, True, False)
        with state.of("b"):
            assert (layer.count, layer.cache is cache, hasattr(layer, "late")) == (0, True, False)
            layer.count = 2
        with state.of("a"):
            assert (layer.count, layer.cache.tolist(), layer.late) == (1, [1, 1], "a")
        with state.of("b"):
            assert (layer.count, hasattr(layer, "late")) == (2, False)
    assert (layer.count, layer.cache is cache, hasattr(layer, "late")) == (0, True, False)
    assert list(layer._buffers) == ["cache"]


def test_a_run_that_fails_leaves_the_model_as_it_was() -> None:
    net = model()
    state = PerRunState(net)

    def run() -> None:
        with state.noticing(), state.of("a"):
            net[0].count = 1
            raise KeyError

    with pytest.raises(KeyError):
        run()
    assert net[0].count == 0


def test_modes_and_modules_of_other_models_are_none_of_it() -> None:
    net, other = model(), model()
    state = PerRunState(net)
    with state.noticing(), state.of("a"):
        other[0].count = 3
        net.training = False  # put back by the driver, which sets it itself
    assert (other[0].count, net.training) == (3, False)
