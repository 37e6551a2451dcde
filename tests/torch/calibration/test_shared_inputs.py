"""Layers that read one tensor, and layers that seem to."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rankfold.calibration.batches import Calibration
from rankfold.calibration.moments import LayerMoments
from rankfold_torch.adapter import TorchAdapter
from rankfold_torch.calibration import moments, sums


class Three(nn.Module):
    """Three layers behind a first one, which read what `way` makes of its output."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first = nn.Linear(4, 6)
        self.q, self.k, self.v = nn.Linear(6, 3), nn.Linear(6, 5), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.first(x)
        q = self.q(x)
        if self.way == "other tensor later" and len(q) == 3:
            x = x.tanh()
        if self.way == "write in place":
            x.tanh_()
        k = self.k(x)
        v = self.v(x)
        if self.way == "first again":
            return q, k, v, self.q(x.tanh())
        if self.way == "not called later" and len(q) == 3:
            return q, v
        if self.way == "second more often" and len(q) == 3:
            return q, k, v, self.k(x)
        return q, k, v


WAYS = (
    "same",
    "other tensor later",
    "write in place",
    "first again",
    "not called later",
    "second more often",
)


def gather(model: nn.Module) -> Mapping[str, LayerMoments]:
    adapter = TorchAdapter()
    layers = {path: adapter.read(model, path) for path in adapter.layers(model)}
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(count, 7, 4, generator=generator) for count in (5, 3, 6)]
    calibration = Calibration.of(batches, None, None)
    rng = np.random.default_rng(0)
    return dict(adapter.moments(model, calibration, layers, rng, lambda item: None))


@pytest.mark.parametrize("way", WAYS)
def test_moments_are_those_of_separate_sums(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Three(way)
    shared = gather(model)
    monkeypatch.setattr(moments, "kind_of", lambda op: None)
    separate = gather(model)
    assert list(shared) == list(separate)
    for path, layer in shared.items():
        np.testing.assert_array_equal(layer.inputs, separate[path].inputs)
        np.testing.assert_array_equal(layer.mean, separate[path].mean)
        np.testing.assert_array_equal(layer.grads, separate[path].grads)
        assert layer.positions_per_example == separate[path].positions_per_example


def test_an_input_of_three_layers_is_summed_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []
    product: Callable[..., Any] = sums.product

    def counted(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sides.append(a.shape[-1])
        return product(a, b)

    monkeypatch.setattr(sums, "product", counted)
    gather(Three("same"))
    batches = sides.count(4)  # inputs of the first layer, which reads another tensor
    assert batches == 3
    # Of width 6 are the inputs of the three, and the gradients at the first one's output, which are
    # as many as those at the output of q.
    assert sides.count(6) == batches + sides.count(3)
