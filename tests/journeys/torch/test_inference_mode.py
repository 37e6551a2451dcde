"""Results made under `torch.inference_mode` are such as those made without it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf

FOLDER = "compressed"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 14, 3),
        nn.BatchNorm2d(14),
        nn.ConvTranspose2d(14, 9, 3),
        nn.Flatten(),
        nn.Linear(9 * 8 * 8, 11),
    ).eval()


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def compressed(model: nn.Module, **options: Any) -> rf.Compressed:
    return rf.compress(model, rf.Ratio(0.4), inputs=images(), **options)


def loaded(model: nn.Module, folder: Path) -> Any:
    compressed(model).save(folder)
    return rf.load(model, folder)


MAKERS: dict[str, Callable[[nn.Module, Path], Any]] = {
    "compress": lambda model, _: compressed(model).model,
    "in place": lambda model, _: compressed(model, inplace=True).model,
    "refit": lambda model, _: compressed(model, calibration=[images(24)]).model,
    "apply": lambda model, _: rf.apply(model, rf.plan(model, rf.Ratio(0.4))).model,
    "load": loaded,
    "expanded": lambda model, _: compressed(model).expanded(model),
}


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    model.train()(images()).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return model.state_dict()


@pytest.mark.parametrize("case", MAKERS)
def test_they_can_be_trained_with_the_same_result(case: str, tmp_path: Path) -> None:
    model = network()
    expected = trained(MAKERS[case](copy.deepcopy(model), tmp_path / "without"))
    with torch.inference_mode():
        small = MAKERS[case](model, tmp_path / "with")
    assert not [name for name, tensor in small.state_dict().items() if tensor.is_inference()]
    result = trained(small)
    assert all(torch.equal(result[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("case", ["compress", "load", "expanded"])
def test_a_copy_of_a_model_made_under_inference_mode_can_be_trained(
    case: str, tmp_path: Path
) -> None:
    with torch.inference_mode():
        model = network()
        small = MAKERS[case](model, tmp_path / "folder")
    assert not [name for name, tensor in small.state_dict().items() if tensor.is_inference()]
    trained(small)
    assert all(parameter.is_inference() for parameter in model.parameters())
