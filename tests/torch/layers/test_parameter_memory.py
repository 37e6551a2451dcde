"""Parameters that are built are contiguous, in the layer's memory format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parameters_to_vector

import rankfold as rf
from rankfold_torch.layers import parameter_memory as memory
from rankfold_torch.layers import stock as layers

CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "linear": (lambda: nn.Linear(24, 20), "svd"),
    "embedding": (lambda: nn.Embedding(31, 12), "svd"),
    **{f"conv2d {name}": (lambda: nn.Conv2d(8, 12, 3), name)
       for name in ("tucker2", "channel_svd", "spatial_svd", "cp")},
    **{f"transposed {name}": (lambda: nn.ConvTranspose2d(8, 12, 4, 2, 1), name)
       for name in ("tucker2", "channel_svd", "spatial_svd")},
    "transposed 1d": (lambda: nn.ConvTranspose1d(8, 12, 4, 2, groups=2), "tucker2"),
    "transposed 3d": (lambda: nn.ConvTranspose3d(8, 12, 2), "channel_svd"),
}  # fmt: skip


def takes_contiguous_parameters_alone(model: nn.Module, file: Path) -> None:
    save_file(model.state_dict(), file)
    parameters_to_vector(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.LBFGS(model.parameters(), max_iter=1).step(lambda: torch.zeros(()))
    assert all(parameter.is_contiguous() for parameter in model.parameters())


@pytest.mark.parametrize("staying", [("cuda",), ("cuda", "cpu")], ids=["arrays", "tensors"])
@pytest.mark.parametrize("case", CASES)
def test_built_parameters_are_contiguous(
    case: str, staying: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(layers, "STAYING", staying)
    make, method = CASES[case]
    model = nn.Sequential(make())
    small = rf.compress(model, rf.Ratio(0.5), methods=(method,))
    assert small.plan["0"].method == method
    takes_contiguous_parameters_alone(small.model, tmp_path / "compressed")
    takes_contiguous_parameters_alone(small.expanded(model), tmp_path / "expanded")
    small.save(tmp_path / "saved")
    takes_contiguous_parameters_alone(rf.load(model, tmp_path / "saved"), tmp_path / "loaded")


def transposed(layer: Any) -> nn.Module:
    """A layer whose weight lies in memory the other way round."""
    layer.weight = nn.Parameter(layer.weight.detach().mT.contiguous().mT)
    assert not layer.weight.is_contiguous()
    return layer


@pytest.mark.parametrize("make", [lambda: nn.Linear(24, 20), lambda: nn.Conv2d(8, 12, 3)])
def test_a_weight_that_is_a_view_is_no_memory_format(make: Any, tmp_path: Path) -> None:
    model = nn.Sequential(transposed(make()))
    small = rf.compress(model, rf.Ranks(3))
    takes_contiguous_parameters_alone(small.model, tmp_path / "compressed")
    takes_contiguous_parameters_alone(small.expanded(model), tmp_path / "expanded")


@pytest.mark.parametrize("transposes", [False, True])
def test_channels_last_is_kept_by_everything_that_is_built(transposes: bool) -> None:
    layer = (nn.ConvTranspose2d if transposes else nn.Conv2d)(8, 12, 3)
    model = nn.Sequential(layer).to(memory_format=torch.channels_last)
    small = rf.compress(model, rf.Ranks(5), methods=["tucker2"])
    for kernel in (small.model[0][1].weight, small.expanded(model)[0].weight):
        assert kernel.is_contiguous(memory_format=torch.channels_last)
        assert not kernel.is_contiguous()


def test_what_a_layer_rule_builds_is_settled_and_what_it_shares_stays_shared() -> None:
    tensor = nn.Parameter(torch.randn(5, 7).T)
    built = nn.Sequential(nn.Linear(5, 7), nn.Linear(5, 7), nn.Linear(5, 7))
    built[0].weight = built[1].weight = tensor
    kept = built[2].weight
    memory.settle(built)
    assert built[0].weight is built[1].weight
    assert built[0].weight.is_contiguous()
    assert torch.equal(built[0].weight, tensor)
    assert built[2].weight is kept
