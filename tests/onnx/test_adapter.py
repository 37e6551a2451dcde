"""The verbs on ONNX models: with data, by plan, saved and loaded."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import numpy_helper  # noqa: E402
from tests.onnx import graphs  # noqa: E402
from tests.onnx.graphs import drawn  # noqa: E402

import rankfold as rf  # noqa: E402
from rankfold.ops import Linear  # noqa: E402
from rankfold_onnx.adapter import OnnxAdapter  # noqa: E402


def images(count: int, seed: int) -> np.ndarray:
    """Images of a few patterns, so that inputs of layers do not fill their space."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(9).standard_normal((4, 3, 12, 10))
    mixed = np.einsum("np,pchw->nchw", rng.standard_normal((count, 4)), patterns)
    return (mixed + 0.05 * rng.standard_normal(mixed.shape)).astype(np.float32)


BATCHES = [images(16, seed) for seed in range(6)]


def off(small: Any, model: Any, x: np.ndarray) -> float:
    y = graphs.run(model, x=x)
    return float(np.linalg.norm(graphs.run(small, x=x) - y) / np.linalg.norm(y))


def test_data_keeps_the_outputs_and_a_refit_keeps_more() -> None:
    model, x = graphs.convolutional(), BATCHES[0][:1]
    budget = rf.Budget(macs=0.4)
    blind = rf.compress(model, budget, inputs=x)
    told = rf.compress(model, budget, inputs=x, calibration=BATCHES, refit=False)
    refitted = rf.compress(model, budget, inputs=x, calibration=BATCHES)
    for small in (blind, told, refitted):
        assert small.plan.macs[1] <= 0.4 * small.plan.macs[0]
    test = images(64, 99)
    errors = [off(small.model, model, test) for small in (blind, told, refitted)]
    assert errors[1] < 0.7 * errors[0], errors
    assert errors[2] < 0.7 * errors[1], errors
    assert any(layer.refit for layer in refitted.plan.layers)
    assert refitted.plan.loss[1] < 1e-2
    for layer in refitted.plan.replaced:
        assert layer.predicted == pytest.approx(layer.measured, rel=0.5, abs=0.02)


def test_layers_in_a_branch_are_met_with_the_data_that_takes_it() -> None:
    model = graphs.conditional()
    rng = np.random.default_rng(0)
    low = rng.standard_normal((3, 12))  # three directions
    batches = []
    for number in range(8):
        x = (rng.standard_normal((8, 3)) @ low).astype(np.float32)
        batches.append(np.abs(x) if number % 2 else -np.abs(x))
    small = rf.compress(model, rf.Ranks(6), inputs=batches[0], calibration=batches)
    moments = rf.gather(model, batches)
    names = ("choice.then_branch.inner", "choice.else_branch.inner", "choice.else_branch.last")
    assert [small.plan[name].measured is not None for name in names] == [True] * 3
    sizes = [moments[name].positions_per_example for name in names]
    assert sizes == [0.5, 0.5, 1.0]
    for x in batches[:2]:
        assert off(small.model, model, x) < 0.35


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


def test_times_are_measured() -> None:
    model, x = graphs.perceptron(), drawn(64, 12)
    adapter = OnnxAdapter()
    chain = (Linear(drawn(2, 12)), Linear(drawn(20, 2), drawn(20)))
    times = adapter.seconds(model, "first", [chain], [(64,)])
    assert len(times) == 2
    assert all(0 < seconds < 1 for seconds in times)
    small = rf.compress(model, rf.Ranks(2), inputs=x).model
    assert all(0 < seconds < 1 for seconds in adapter.model_seconds([model, small], x))


@pytest.mark.parametrize("loss", ["cross_entropy", "outputs", "own"])
def test_losses_are_measured(loss: str) -> None:
    model, x = graphs.convolutional(), BATCHES[0][:1]
    judged: Any = loss
    if loss == "own":

        def judged(outputs: np.ndarray, batch: np.ndarray) -> float:
            assert len(outputs) == len(batch)
            return float(np.square(outputs).mean())

    small = rf.compress(model, rf.Ratio(0.5), inputs=x, calibration=BATCHES, loss=judged)
    before, after = small.plan.loss
    assert (before > 0) == (loss == "own")
    assert 0 < after < 10


def test_data_that_does_not_fit_is_an_error() -> None:
    model, x = graphs.convolutional(), BATCHES[0][:1]
    broken = [BATCHES[0], np.full_like(BATCHES[1], np.nan)]
    with pytest.raises(rf.RankfoldError, match=r"layer 'stem': its input .* NaN"):
        rf.gather(model, broken)
    with pytest.raises(rf.RankfoldError, match="batch 1: inputs: 'x' is int64"):
        rf.gather(model, [BATCHES[0], BATCHES[1].astype(np.int64)], inputs=x)
    with pytest.raises(rf.RankfoldError, match="gave shape"):
        rf.gather(model, BATCHES, loss=lambda outputs, batch: outputs)


def test_values_in_files_that_are_not_loaded_are_refused(tmp_path: Path) -> None:
    model = graphs.perceptron()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    bare = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert "not loaded" in rf.plan(bare, rf.Ranks(2)).layers[0].reason
    assert rf.plan(tmp_path / "m.onnx", rf.Ranks(2)).replaced


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


def test_the_weights_that_are_written_are_those_of_the_graph(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    model = graphs.perceptron()
    OnnxAdapter().save_weights(model, tmp_path / "weights.safetensors")
    stored = load_file(tmp_path / "weights.safetensors")
    for tensor in model.graph.initializer:
        assert (stored[tensor.name] == numpy_helper.to_array(tensor)).all()
