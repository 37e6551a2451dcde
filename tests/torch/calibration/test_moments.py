"""Moments of layers on calibration data, against direct computations."""

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partialmethod
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import rankfold.calibration.moments
from rankfold.calibration import array_store
from rankfold.calibration.batches import Calibration
from rankfold.calibration.moments import LayerMoments
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.errors import RankfoldError
from rankfold_torch.adapter import TorchAdapter
from rankfold_torch.calibration import sums

Untouched = Callable[[nn.Module], AbstractContextManager[None]]


def silent(item: str) -> None:
    pass


def gather(
    model: nn.Module, batches: Any, loss: Any = None, seed: int = 0, example: Any = None
) -> Mapping[str, LayerMoments]:
    adapter = TorchAdapter()
    layers = {path: adapter.read(model, path) for path in adapter.layers(model)}
    calibration = Calibration.of(batches, example, loss)
    return adapter.moments(model, calibration, layers, np.random.default_rng(seed), silent)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, (3, 2), padding=1, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 5)
        self.unused = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.relu(self.norm(self.conv(x)), inplace=True)
        return self.head(self.drop(hidden).mean((2, 3)))


def test_moments_are_those_of_a_direct_computation(untouched: Untouched) -> None:
    model = Small()
    batches = [torch.randn(5, 2, 7, 6), torch.randn(3, 2, 7, 6)]
    with untouched(model):
        found = gather(model, batches)
    assert list(found) == ["conv", "head"]
    x = torch.cat(batches)
    rows = nn.functional.unfold(x, (3, 2), padding=1).transpose(1, 2).reshape(-1, 2, 6).double()
    conv = found["conv"]
    expected = torch.einsum("rgi,rgj->gij", rows, rows) / len(rows)
    np.testing.assert_allclose(conv.inputs, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(conv.mean, rows.mean(0), rtol=1e-5, atol=1e-6)
    assert conv.samples == 8
    assert conv.positions_per_example == 7 * 7
    head = found["head"]
    model.eval()
    with torch.no_grad():
        hidden = model.norm(model.conv(x)).relu().mean((2, 3)).double()
    np.testing.assert_allclose(head.inputs[0], hidden.T @ hidden / 8, rtol=1e-5, atol=1e-6)
    assert head.positions_per_example == 1
    assert head.grads is not None
    assert head.grads.shape == (1, 5, 5)
    assert conv.grads is not None
    assert conv.grads.shape == (2, 3, 3)


def test_gradients_of_the_outputs_of_a_linear_model() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).requires_grad_(False)
    found = gather(model, torch.randn(20000, 4))
    last = model[1].weight.detach().double()
    assert found["0"].grads is not None
    assert found["1"].grads is not None
    np.testing.assert_allclose(found["0"].grads[0], last.T @ last, atol=0.02)
    np.testing.assert_allclose(found["1"].grads[0], np.eye(2), atol=0.04)


def test_gradients_of_cross_entropy() -> None:
    model = nn.Linear(4, 3)
    x = torch.randn(20000, 4)
    with torch.no_grad():
        p = model(x).softmax(1).double()
    expected = torch.diag(p.mean(0)) - p.T @ p / len(p)
    found = gather(model, x, "cross_entropy")[""]
    assert found.grads is not None
    np.testing.assert_allclose(found.grads[0], expected, atol=0.02)


def test_gradients_of_a_single_logit() -> None:
    model = nn.Linear(4, 1)
    x = torch.randn(20000, 4)
    p = model(x).sigmoid()
    found = gather(model, x, "cross_entropy")[""]
    assert found.grads is not None
    np.testing.assert_allclose(found.grads[0, 0, 0], (p * (1 - p)).mean().item(), rtol=0.05)


def test_a_mean_over_a_batch_counts_as_a_sum() -> None:
    model = nn.Linear(3, 2)
    batches = [(torch.randn(n, 3), torch.randn(n, 2)) for n in (6, 4)]

    def loss(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        return (outputs - batch[1]).square().sum(1).mean()

    found = gather(model, batches, loss, example=(batches[0][0],))[""]
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    g = 2 * (model(x) - y).detach().double()
    assert found.grads is not None
    np.testing.assert_allclose(found.grads[0], g.T @ g / 10, rtol=1e-5)
    assert found.samples == 10


def test_an_embedding_is_counted() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    found = gather(model, [torch.tensor([[0, 1, 1]]), torch.tensor([[4, 1, 0]])])
    np.testing.assert_allclose(found["0"].inputs, [[2 / 6, 3 / 6, 0, 0, 1 / 6]])
    assert found["0"].positions_per_example == 3
    assert found["0"].grads is not None
    assert found["0"].grads.shape == (1, 3, 3)


def test_large_layers_are_gathered_in_smaller_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rankfold.calibration.moments, "PATCH_LIMIT", 8)
    monkeypatch.setattr(rankfold.calibration.moments, "FEATURE_LIMIT", 4)
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 9, 2, 2), nn.Flatten(2), nn.Linear(16, 2), nn.Flatten()
    )
    x = torch.randn(3, 3, 2, 2)
    found = gather(model, x)
    # Twelve numbers: the sketch has as many columns, and is the covariance.
    assert isinstance(found["0"].inputs, SeparableMoment)
    # Stride and kernel are alike: an output position meets one input, at the tap of its own place.
    pixels = x.movedim(1, -1).reshape(-1, 1, 3, 1)
    rows = (pixels * torch.eye(4).reshape(1, 4, 1, 4)).reshape(-1, 12).double()
    np.testing.assert_allclose(found["0"].mean[0], rows.mean(0), rtol=1e-5, atol=1e-7)
    covariance = np.cov(rows.T, bias=True)
    np.testing.assert_allclose(
        found["0"].inputs.products(np.eye(12)[None])[0], covariance, rtol=1e-3, atol=1e-5
    )
    assert found["0"].grads is not None
    assert found["0"].grads.shape == (1, 9)
    with torch.no_grad():
        features = model[1](model[0](x)).reshape(-1, 16).double()
    np.testing.assert_allclose(found["2"].inputs[0], features.square().mean(0), rtol=1e-5)


def test_a_shared_layer_sums_its_calls_up() -> None:
    layer = nn.Linear(3, 3)
    x = torch.randn(70, 3)
    found = gather(nn.Sequential(layer, layer), x)
    with torch.no_grad():
        rows = torch.cat([x, layer(x)]).double()
    np.testing.assert_allclose(found["0"].inputs[0], rows.T @ rows / 140, rtol=1e-5)
    assert found["0"].positions_per_example == 2


def test_a_sample_is_enough() -> None:
    model = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 160, 160) + 1
    found = gather(model, x)[""]
    rows = nn.functional.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 27).double()
    full = rows.T @ rows / len(rows)
    assert found.positions_per_example == 160 * 160
    assert np.linalg.norm(found.inputs[0] - full.numpy()) < 0.03 * float(full.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precisions(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(24, 2))
    x = torch.randn(70, 3, 8)
    expected = gather(model, x)
    found = gather(model.to(dtype), x.to(dtype))
    tolerance = 1e-6 if dtype == torch.float64 else 0.02
    for path in expected:
        np.testing.assert_allclose(found[path].inputs, expected[path].inputs, atol=tolerance)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 5)
        self.frozen, self.last = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = checkpoint(self.second, self.first(x), use_reentrant=self.reentrant)
        with torch.no_grad():
            side = self.frozen(x)
        return self.last(x + side)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_counted_once(reentrant: bool, untouched: Untouched) -> None:
    model = Checkpointed(reentrant)
    x = torch.randn(6, 3)
    with untouched(model):
        found = gather(model, x)
    assert [
        found[path].positions_per_example for path in ("first", "second", "frozen", "last")
    ] == [1, 1, 1, 1]
    assert found["frozen"].grads is None
    for path in ("first", "second", "last"):
        assert found[path].grads is not None
    plain = nn.Sequential(model.first, model.second)
    expected = gather(plain, x)
    np.testing.assert_allclose(found["second"].inputs, expected["1"].inputs, rtol=1e-5)


def test_a_recurrent_layer_between() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 4)
            self.cell = nn.LSTM(4, 5, num_layers=2, dropout=0.4, batch_first=True)
            self.last = nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.cell(self.first(x))[0])

    model = Recurrent()
    adapter = TorchAdapter()
    layers = {path: adapter.read(model, path) for path in ("first", "last")}
    calibration = Calibration.of(torch.randn(4, 6, 3), None, None)
    a, b = (
        adapter.moments(model, calibration, layers, np.random.default_rng(0), silent)
        for _ in range(2)
    )
    assert model.cell.dropout == 0.4
    assert a["first"].grads is not None
    np.testing.assert_array_equal(a["last"].inputs, b["last"].inputs)


class Failing(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        if self.what == "values":
            y = y / 0
        if self.what == "gradient":
            y = (y * 0).sqrt()
        if self.what == "raise" and len(x) == 2:
            raise KeyError("no such thing")
        return self.last(y)


@pytest.mark.parametrize(
    ("what", "loss", "message"),
    [
        ("values", None, "layer 'last': its input"),
        ("gradient", None, "layer 'first': the gradient"),
        ("raise", None, "batch 1 with KeyError"),
        ("", lambda outputs, batch: outputs, r"shape \(4, 2\)"),
        ("", lambda outputs, batch: outputs.sum().item(), "float"),
        ("", lambda outputs, batch: outputs.sum().detach(), "differentiated"),
        ("", lambda outputs, batch: outputs.missing, "fails on batch 0 with AttributeError"),
    ],
)
def test_what_goes_wrong_is_named(what: str, loss: Any, message: str, untouched: Untouched) -> None:
    model = Failing(what).train()
    batches = [torch.randn(4, 3), torch.randn(2, 3)]
    with untouched(model), pytest.raises(RankfoldError, match=message):
        gather(model, batches, loss)


def test_gradients_before_are_kept(untouched: Untouched) -> None:
    model = nn.Linear(3, 2)
    model(torch.randn(4, 3)).sum().backward()
    x = torch.randn(4, 3, requires_grad=True)
    with untouched(model):
        gather(model, x)
    assert x.grad is None


def test_the_seed_decides() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(5, 3)
    one, again, other = (gather(model, x, seed=seed)["0"].grads for seed in (0, 0, 1))
    assert one is not None
    assert again is not None
    assert other is not None
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


def test_inside_no_grad_and_inference_mode() -> None:
    model, x = nn.Linear(3, 2), torch.randn(5, 3)
    with torch.no_grad():
        assert gather(model, x)[""].grads is not None
    with torch.inference_mode():
        assert gather(model, x)[""].grads is not None


def test_autocast_does_not_make_sums_coarse() -> None:
    model, x = nn.Linear(30, 20), torch.randn(500, 30)
    expected = gather(model, x)[""].inputs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gather(model, x)[""].inputs
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_nested_outputs() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            y = self.layer(x)
            return {"logits": y, "more": [y.sum(1), (x.long(), None)]}

    found = gather(Many(), torch.randn(20000, 3))["layer"].grads
    assert found is not None
    np.testing.assert_allclose(found[0], np.eye(4) + np.ones((4, 4)), atol=0.06 * math.sqrt(2))
    assert gather(Many(), torch.randn(5, 3), "cross_entropy")["layer"].grads is not None


def test_moments_out_of_the_file_are_those_of_memory_to_the_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batches = Small(), [torch.randn(5, 2, 7, 6), torch.randn(3, 2, 7, 6)]
    in_memory = gather(model, batches)
    monkeypatch.setattr(array_store, "LIMIT", 0)
    on_disk = gather(model, batches)
    assert list(on_disk) == list(in_memory)
    for path, layer in on_disk.items():
        for name in ("inputs", "mean", "grads"):
            np.testing.assert_array_equal(getattr(layer, name), getattr(in_memory[path], name))


def test_squares_of_many_rows_are_summed_up_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(19, 2, 5)
    monkeypatch.setattr(sums, "_SQUARES", 30)
    torch.testing.assert_close(sums.squares(rows), rows.square().sum(0))
    assert sums.squares(rows[:0]).tolist() == [[0.0] * 5] * 2


@pytest.mark.parametrize("width", [5, 300])
def test_calls_of_one_layer_in_several_threads_are_all_counted(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Threaded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(width, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with ThreadPoolExecutor(4) as threads:
                return torch.cat(list(threads.map(self.layer, x.split(6))))

    def slow(self: Any, *arguments: Any, call: Callable[..., Any]) -> Any:
        time.sleep(1e-3)  # so that another thread comes between
        return call(self, *arguments)

    store, rows = array_store.ArrayStore, array_store.StoredRows
    for kind, name in ((store, "keep"), (store, "reserve"), (rows, "add")):
        monkeypatch.setattr(kind, name, partialmethod(slow, call=getattr(kind, name)))
    x = torch.randn(96, width)
    layer = gather(Threaded(), x)["layer"]
    assert layer.positions_per_example == 1.0
    expected = (x.double().T @ x.double() / len(x)).numpy()
    np.testing.assert_allclose(np.asarray(layer.inputs)[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.mean[0], x.double().mean(0), rtol=1e-4, atol=1e-5)
