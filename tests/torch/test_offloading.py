"""What is known of accelerate's hooks, and which layers are left alone for them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import rankfold as rf
from rankfold_torch import offloading

accelerate = pytest.importorskip("accelerate")
hooks = pytest.importorskip("accelerate.hooks")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(7, 13), nn.ReLU(), nn.Linear(13, 5))


def reason(model: nn.Module, path: str = "0") -> str:
    return rf.plan(model, rf.Ranks(2))[path].reason


class Logged(hooks.AlignDevicesHook):  # type: ignore[name-defined, misc]
    """Moves as accelerate's does, and may do more."""


@pytest.mark.parametrize(
    "hook",
    [
        hooks.CpuOffload("cpu"),
        hooks.LayerwiseCastingHook(torch.bfloat16, torch.float32, non_blocking=False),
        Logged("cpu"),
        hooks.SequentialHook(hooks.AlignDevicesHook("cpu"), hooks.ModelHook()),
    ],
    ids=lambda hook: type(hook).__name__,
)
def test_a_hook_that_does_something_else_is_a_reason(hook: object) -> None:
    model = network()
    hooks.add_hook_to_module(model[0], hook)
    assert reason(model).startswith("it has a hook of accelerate")
    assert rf.plan(model, rf.Ranks(2))["2"].method == "svd"


def test_weights_that_come_with_those_of_the_model_around_are_a_reason() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

    model = accelerate.cpu_offload(Around(), preload_module_classes=["Sequential"])
    assert "together with all of 'inner'" in reason(model, "inner.0")


def test_a_store_that_cannot_be_written_to_is_a_reason() -> None:
    class Other:
        def __getitem__(self, name: str) -> torch.Tensor:
            return torch.ones(13, 7)

    model = network()
    hook = hooks.AlignDevicesHook("cpu", offload=True, weights_map=Other())
    hooks.add_hook_to_module(model[0], hook)
    assert "from a Other" in reason(model)


def test_a_loader_without_a_folder_is_a_reason(tmp_path: Path) -> None:
    model = network()
    file = tmp_path / "model.safetensors"
    save_file(model.state_dict(), file)
    index = {name: {"safetensors_file": str(file)} for name in model.state_dict()}
    model = accelerate.dispatch_model(model, {"": "disk"}, offload_index=index)
    assert "offload_folder=" in reason(model)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 7), nn.Linear(7, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(x))


def test_ties_of_offloaded_weights_are_known(tmp_path: Path) -> None:
    ids = torch.arange(5)
    places = {"table": "disk", "head": "disk"}
    for model in (
        accelerate.cpu_offload(Tied()),
        accelerate.dispatch_model(Tied(), places, offload_dir=tmp_path),
    ):
        for _ in range(2):  # the call makes the tensors anew
            assert reason(model, "table").startswith("tied: ")
            assert reason(model, "head").startswith("tied: ")
            model(ids)


def test_a_forward_that_was_put_on_a_layer_before_the_hook_counts() -> None:
    model = network()
    model[0].forward = lambda x: nn.functional.linear(x, model[0].weight).relu()
    hooks.add_hook_to_module(model[0], hooks.AlignDevicesHook("cpu"))
    assert "forward of its own" in reason(model)


def test_only_what_is_needed_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = accelerate.disk_offload(network(), tmp_path)
    read: list[str] = []
    loader = type(offloading.offloading(model[0]).weights_map.dataset)
    usual = loader.__getitem__
    monkeypatch.setattr(loader, "__getitem__", lambda s, n: (read.append(n), usual(s, n))[1])
    layer = offloading.loaded(model[0])
    assert sorted(read) == ["0.bias", "0.weight"]
    assert layer.weight.device.type == "cpu"
    assert model[0].weight.is_meta


def test_what_a_failed_run_has_brought_is_taken_away(tmp_path: Path) -> None:
    model = accelerate.disk_offload(network(), tmp_path)
    with pytest.raises(rf.RankfoldError, match="the model fails"):
        rf.plan(model, rf.Ranks(2), inputs=torch.ones(3, 8))
    assert all(p.is_meta for p in model.parameters())
    assert rf.plan(model, rf.Ranks(2), inputs=torch.ones(3, 7)).replaced


def test_values_that_a_run_writes_to_are_put_back() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.scale = nn.Linear(7, 13), nn.Parameter(torch.ones(13))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.scale.data.add_(1)
            return self.first(x) * self.scale

    model = accelerate.cpu_offload(Writes())
    value = offloading.offloading(model).weights_map["scale"]
    rf.plan(model, rf.Ranks(2), inputs=torch.ones(3, 7))
    assert torch.equal(value, torch.ones(13))
