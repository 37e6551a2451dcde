"""Models that accelerate has dispatched, compressed with their hooks."""

import copy
import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interrupting import interrupted
from tests.torch.conftest import state
from torch import nn

import rankfold as rf
from rankfold_torch.adapter import TorchAdapter
from rankfold_torch.offloading import offloading

accelerate = pytest.importorskip("accelerate")
hooks = pytest.importorskip("accelerate.hooks")

X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
BATCHES = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]


class Block(nn.Module):
    """With a parameter of its own, which its forward uses after its layers."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.scale = nn.Parameter(torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 13, 3, padding=1), nn.BatchNorm2d(13)
        self.blocks = nn.Sequential(Block(13, 29), Block(13, 31))
        self.head = nn.Linear(13, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def on_cpu(folder: Path) -> nn.Module:
    return accelerate.cpu_offload(network(), offload_buffers=True)


def on_disk(folder: Path) -> nn.Module:
    return accelerate.disk_offload(network(), folder)


def dispatched(folder: Path) -> nn.Module:
    places = {"conv": "disk", "norm": "cpu", "blocks.0": "disk", "blocks.1": "cpu", "head": "cpu"}
    return accelerate.dispatch_model(network(), places, offload_dir=folder)


def hooked(folder: Path) -> nn.Module:
    model = network()
    hooks.add_hook_to_module(model.conv, hooks.AlignDevicesHook("cpu", offload=True))
    hooks.add_hook_to_module(model.head, hooks.AlignDevicesHook("cpu", io_same_device=True))
    return model


WAYS = (on_cpu, on_disk, dispatched, hooked)
CALLS: dict[str, dict[str, Any]] = {
    "weights": {"policy": rf.Ratio(0.5), "include": "*"},
    "inputs": {"policy": rf.VBMF(), "inputs": X},
    "calibration": {"policy": rf.Budget(macs=0.5), "inputs": X, "calibration": BATCHES},
}


def offloaded(model: nn.Module) -> set[str]:
    """Paths of modules whose own parameters are away."""
    return {
        path
        for path, module in model.named_modules()
        if any(p is not None and p.is_meta for p in module._parameters.values())
    }


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "inplace"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("way", WAYS)
def test_the_result_is_that_of_the_model_without_hooks(
    way: Callable[[Path], nn.Module], call: str, inplace: bool, tmp_path: Path
) -> None:
    model = way(tmp_path)
    output = model(X)
    away, before = offloaded(model), state(model)
    with_hooks = {path for path, module in model.named_modules() if hasattr(module, "_hf_hook")}
    plain = rf.compress(network(), **CALLS[call])
    small = rf.compress(model, inplace=inplace, **CALLS[call])
    assert [(x.path, x.method, x.ranks) for x in small.plan.layers] == [
        (x.path, x.method, x.ranks) for x in plain.plan.layers
    ]
    assert torch.equal(small.model(X), plain.model(X))
    replaced = {layer.path for layer in small.plan.replaced}
    stages = {
        f"{path}.{name}"
        for path in replaced & away
        for name, stage in small.model.get_submodule(path).named_children()
        if any(True for _ in stage.parameters())
    }
    assert offloaded(small.model) == (away - replaced) | stages
    for path in replaced & with_hooks:
        assert type(small.model.get_submodule(path)._hf_hook) is hooks.AlignDevicesHook
    if not inplace:
        assert state(model) == before
        assert torch.equal(model(X), output)


def test_stores_hold_no_values_of_layers_that_are_gone(tmp_path: Path) -> None:
    model = on_cpu(tmp_path)
    store = offloading(model.head).weights_map.dataset
    small = rf.compress(model, rf.Ranks(3), include="head")
    copied = offloading(small.model.conv).weights_map.dataset
    assert "head.weight" in store
    assert {n for n in copied if n.startswith("head")} == {
        "head.0.weight",
        "head.1.weight",
        "head.1.bias",
    }
    assert copied["conv.weight"].data_ptr() != store["conv.weight"].data_ptr()
    rf.compress(model, rf.Ranks(3), include="head", inplace=True)
    assert store.keys() == copied.keys()


def test_files_of_a_copy_are_its_own_and_go_with_it(tmp_path: Path) -> None:
    model = on_disk(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    first = rf.compress(model, rf.Ranks(3), include="head")
    second = rf.compress(model, rf.Ranks(2), include="head")
    outputs = [small.model(X) for small in (first, second)]
    again = copy.deepcopy(first.model)
    assert len(set(tmp_path.iterdir()) - before.keys()) == 2
    del first
    gc.collect()
    assert torch.equal(again(X), outputs[0])
    assert torch.equal(second.model(X), outputs[1])
    del again, second
    gc.collect()
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_model_is_as_it_was_where_it_cannot_be_changed(tmp_path: Path) -> None:
    model = on_disk(tmp_path)
    files, loader = set(tmp_path.iterdir()), model.head._hf_hook.weights_map
    entries = dict(loader.dataset.index)
    kept, new = [model.head], nn.Linear(13, 11)
    before = state(model)
    model.call_it = lambda x: kept[0](x)  # by closure, where no other can take its place
    with pytest.raises(rf.RankfoldError, match="'head' cannot be replaced"):
        TorchAdapter().replace(model, {"head": new}, inplace=True)
    del model.call_it
    gc.collect()
    assert state(model) == before
    assert loader.dataset.index == entries
    assert set(tmp_path.iterdir()) == files


@pytest.mark.parametrize("way", [on_cpu, on_disk])
def test_an_interrupted_call_leaves_the_model_whole(
    way: Callable[[Path], nn.Module], tmp_path: Path
) -> None:
    new = nn.Sequential(nn.Linear(13, 3, bias=False), nn.Linear(3, 11))
    files = ("surgery/replace.py", "surgery/hooked_modules.py", "state/transaction.py")
    whole = network()
    outputs = {False: whole(X), True: TorchAdapter().replace(whole, {"head": new}, inplace=True)(X)}
    replaced = set()

    def change(model: nn.Module) -> None:
        TorchAdapter().replace(model, {"head": new}, inplace=True)

    lines = interrupted(lambda: change(way(tmp_path / "count")), files)
    for line in range(1, lines + 1, 5):
        model = way(tmp_path / f"{line}")
        interrupted(partial(change, model), files, line)
        has_new = isinstance(model.head, nn.Sequential)
        assert torch.equal(model(X), outputs[has_new])
        replaced.add(has_new)
    assert replaced == {False, True}


@pytest.mark.parametrize("way", WAYS)
def test_a_compressed_model_is_compressed_again_and_expanded(
    way: Callable[[Path], nn.Module], tmp_path: Path
) -> None:
    call: dict[str, Any] = {"policy": rf.Ranks(5), "include": "*"}
    model = way(tmp_path)
    plain, small = (rf.compress(m, **call) for m in (network(), model))
    assert torch.equal(small.expanded(model)(X), plain.expanded(network())(X))
    assert offloaded(small.expanded(model)) == offloaded(model)
    twice = [rf.compress(each.model, rf.Ranks(2)).model(X) for each in (plain, small)]
    assert torch.equal(*twice)


def test_the_methods_that_accelerate_guards_are_guarded_in_a_copy(tmp_path: Path) -> None:
    small = rf.compress(dispatched(tmp_path), rf.Ranks(3), include="head").model
    with pytest.raises(RuntimeError, match="can't move a model"):
        small.to(torch.float64)
    hooks.remove_hook_from_module(small, recurse=True)
    assert small.to(torch.float64).head[0].weight.dtype is torch.float64


def test_hooks_come_off_with_the_values(tmp_path: Path) -> None:
    small = rf.compress(on_disk(tmp_path), rf.Ratio(0.5), include="*").model
    output = small(X)
    hooks.remove_hook_from_module(small, recurse=True)
    assert not offloaded(small)
    assert torch.equal(small(X), output)


@pytest.mark.parametrize("way", [on_cpu, on_disk])
def test_an_offloaded_model_is_saved(way: Callable[[Path], nn.Module], tmp_path: Path) -> None:
    small = rf.compress(way(tmp_path / "offload"), rf.Ratio(0.5), include="*")
    small.save(tmp_path / "small")
    assert torch.equal(rf.load(network(), tmp_path / "small")(X), small.model(X))


def test_an_offloaded_model_is_neither_loaded_into_nor_distilled(tmp_path: Path) -> None:
    model = on_disk(tmp_path / "offload")
    small = rf.compress(model, rf.Ratio(0.5), include="*")
    small.save(tmp_path / "small")
    with pytest.raises(rf.RankfoldError, match=r"accelerate offloads.*without offload"):
        rf.load(model, tmp_path / "small")
    with pytest.raises(rf.RankfoldError, match=r"accelerate offloads.*not offloaded"):
        rf.distil(small, model, BATCHES, steps=1)
