"""The distance of two models in a loss."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rankfold.adapters.base import Calibrates
from rankfold.calibration.batches import Calibration
from rankfold.errors import RankfoldError
from rankfold_torch.adapter import TorchAdapter
from rankfold_torch.calibration import losses

Untouched = Callable[[nn.Module], AbstractContextManager[None]]


def test_the_adapter_is_data_aware() -> None:
    assert isinstance(TorchAdapter(), Calibrates)


def apart(model: nn.Module, small: nn.Module, batches: Any, loss: Any) -> tuple[float, float]:
    return TorchAdapter().divergence(model, small, Calibration.of(batches, None, loss))


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 3)).train()
    small = copy.deepcopy(model)
    with torch.no_grad():
        small[0].weight += 0.1
    return model, small


def test_the_same_model_is_nowhere_apart(pair: tuple[nn.Module, nn.Module]) -> None:
    x = [torch.randn(6, 4)]
    for loss in ("outputs", "cross_entropy"):
        assert apart(pair[0], pair[0], x, loss) == (0.0, 0.0)


def test_distance_of_outputs(pair: tuple[nn.Module, nn.Module], untouched: Untouched) -> None:
    batches = [torch.randn(6, 4), torch.randn(3, 4)]
    with untouched(pair[0]), untouched(pair[1]):
        found = apart(*pair, batches, "outputs")
    x = torch.cat(batches)
    a, b = (m.eval()(x).detach().double() for m in pair)
    expected = float((a - b).square().sum() / a.square().sum())
    assert found == (0.0, pytest.approx(expected, rel=1e-6))


def test_divergence_of_predictions(pair: tuple[nn.Module, nn.Module]) -> None:
    batches = [torch.randn(6, 4), torch.randn(3, 4)]
    found = apart(*pair, batches, "cross_entropy")
    x = torch.cat(batches)
    a, b = (m.eval()(x).detach().double().log_softmax(1) for m in pair)
    expected = nn.functional.kl_div(b, a, log_target=True, reduction="batchmean")
    assert found == (0.0, pytest.approx(float(expected), rel=1e-6))


def test_masked_classes_and_single_logits() -> None:
    class Masked(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.shift = shift

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x[:, :1] * 0 + self.shift, x[:, :1] * 0 - torch.inf], 1)

    x = torch.randn(5, 2)
    for loss in ("cross_entropy", "outputs"):
        assert 0 < apart(Masked(0.0), Masked(1.0), x, loss)[1] < np.inf
    single = nn.Linear(2, 1), nn.Linear(2, 1)
    p, q = (m(x).sigmoid().detach().double() for m in single)
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert apart(*single, x, "cross_entropy")[1] == pytest.approx(float(expected), rel=1e-4)


def test_a_loss_of_the_user(pair: tuple[nn.Module, nn.Module]) -> None:
    batches = [(torch.randn(n, 4), torch.randn(n, 3)) for n in (6, 3)]

    def loss(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        return nn.functional.mse_loss(outputs, batch[1])

    calibration = Calibration.of(batches, (batches[0][0],), loss)
    found = TorchAdapter().divergence(*pair, calibration)
    for value, model in zip(found, pair, strict=True):
        model.eval()
        expected = np.mean([loss(model(b[0]), b).item() for b in batches])
        assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", ["outputs", "cross_entropy"])
def test_a_batch_that_fails_is_named(pair: tuple[nn.Module, nn.Module], loss: str) -> None:
    with pytest.raises(RankfoldError, match="batch 1 with RuntimeError"):
        apart(*pair, [torch.randn(6, 4), torch.randn(6, 3)], loss)


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((6, 5), (6, 5)),
        ((6, 7, 5), (42, 5)),
        ((6, 5, 2, 3), (36, 5)),
        ((6,), (6, 1)),
        ((5,), (1, 5)),
    ],
)
def test_where_the_classes_are(shape: tuple[int, ...], rows: tuple[int, int]) -> None:
    x = torch.randn(shape)
    found = losses.logits((x,), 6)
    assert tuple(found.shape) == rows
    if len(shape) == 4:
        torch.testing.assert_close(found[1], x[0, :, 0, 1])


def test_outputs_without_logits_are_refused() -> None:
    with pytest.raises(RankfoldError, match="no logits"):
        losses.logits({"other": torch.randn(3, 4)}, 3)
    with pytest.raises(RankfoldError, match="floating-point"):
        losses.floats([torch.arange(3)])
