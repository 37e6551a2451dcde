"""The verbs on ONNX models: with data, by plan, saved and loaded."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from tests.onnx import graphs  # noqa: E402

import rankfold as rf  # noqa: E402

BATCHES = [graphs.images(16, seed) for seed in range(6)]


def test_data_keeps_the_outputs_and_a_refit_keeps_more() -> None:
    model, x = graphs.convolutional(), BATCHES[0][:1]
    budget = rf.Budget(macs=0.4)
    blind = rf.compress(model, budget, inputs=x)
    told = rf.compress(model, budget, inputs=x, calibration=BATCHES, refit=False)
    refitted = rf.compress(model, budget, inputs=x, calibration=BATCHES)
    for small in (blind, told, refitted):
        assert small.plan.macs[1] <= 0.4 * small.plan.macs[0]
    test = graphs.images(64, 99)
    errors = [graphs.off(small.model, model, test) for small in (blind, told, refitted)]
    assert errors[1] < 0.7 * errors[0], errors
    assert errors[2] < 0.7 * errors[1], errors
    assert any(layer.refit for layer in refitted.plan.layers)
    assert refitted.plan.loss[1] < 1e-2
    for layer in refitted.plan.replaced:
        assert layer.predicted == pytest.approx(layer.measured, rel=0.5, abs=0.02)


def test_a_plan_applied_is_the_model_compressed() -> None:
    model, x = graphs.convolutional(), BATCHES[0][:1]
    plan = rf.plan(model, rf.Energy(0.7), inputs=x)
    again = rf.apply(model, rf.Plan.from_json(plan.to_json()))
    direct = rf.compress(model, rf.Energy(0.7), inputs=x)
    assert again.plan.layers == direct.plan.layers
    assert again.model.SerializeToString(deterministic=True) == direct.model.SerializeToString(
        deterministic=True
    )


def test_moments_that_were_gathered_serve_any_plan(tmp_path: Path) -> None:
    model, x = graphs.convolutional(), BATCHES[0][:1]
    moments = rf.gather(model, BATCHES)
    moments.save(tmp_path / "moments.safetensors")
    direct = rf.plan(model, rf.Budget(macs=0.5), inputs=x, calibration=BATCHES)
    stored = rf.Moments.load(tmp_path / "moments.safetensors")
    later = rf.plan(model, rf.Budget(macs=0.5), inputs=x, moments=stored)
    assert later.layers == direct.layers


def test_a_folder_is_loaded_into_the_original(tmp_path: Path) -> None:
    model, x = graphs.convolutional(), BATCHES[0]
    onnx.save(model, tmp_path / "model.onnx")
    small = rf.compress(tmp_path / "model.onnx", rf.Budget(params=0.5), calibration=BATCHES)
    small.save(tmp_path / "out")
    for original in (model, tmp_path / "model.onnx", str(tmp_path / "model.onnx")):
        loaded = rf.load(original, tmp_path / "out")
        assert (graphs.run(loaded, x=x) == graphs.run(small.model, x=x)).all()


def test_data_that_does_not_fit_is_an_error() -> None:
    model, x = graphs.convolutional(), BATCHES[0][:1]
    broken = [BATCHES[0], np.full_like(BATCHES[1], np.nan)]
    with pytest.raises(rf.RankfoldError, match=r"layer 'stem': its input .* NaN"):
        rf.gather(model, broken)
    with pytest.raises(rf.RankfoldError, match="batch 1: inputs: 'x' is int64"):
        rf.gather(model, [BATCHES[0], BATCHES[1].astype(np.int64)], inputs=x)
    with pytest.raises(rf.RankfoldError, match="gave shape"):
        rf.gather(model, BATCHES, loss=lambda outputs, batch: outputs)


def test_an_exported_network_is_compressed_as_the_network_itself() -> None:
    torch = pytest.importorskip("torch")
    from torch import nn

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(24, 16, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()
    x, file = torch.randn(2, 3, 12, 10), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, on itself
        torch.onnx.export(network, (x,), file, dynamo=False, input_names=["x"])
    model = onnx.load_from_string(file.getvalue())
    ours = rf.compress(model, rf.Energy(0.6), inputs=x.numpy())
    theirs = rf.compress(network, rf.Energy(0.6), inputs=x)
    for layer, other in zip(ours.plan.layers, theirs.plan.layers, strict=True):
        assert (layer.method, layer.ranks, layer.macs) == (other.method, other.ranks, other.macs)
    assert len(ours.plan.replaced) == 2
    with torch.no_grad():
        graphs.near(graphs.run(ours.model, x=x.numpy()), theirs.model(x).numpy())
