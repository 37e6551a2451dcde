"""ONNX networks that packages ship, where these are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

import rankfold as rf  # noqa: E402

OCR, VAD = "rapidocr_onnxruntime", "silero_vad"


def network(package: str, file: str) -> Any:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    return onnx.load(Path(spec.origin).parent / file)


def outputs(model: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    return ort.InferenceSession(model.SerializeToString()).run(None, feeds)


def image(height: int, width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((2, 3, height, width), dtype=np.float32)}


def sound(rate: int) -> dict[str, np.ndarray]:
    length = 576 if rate == 16000 else 288
    wave = 0.1 * np.random.default_rng(0).standard_normal((2, length), dtype=np.float32)
    state = np.zeros((2, 2, 128), np.float32)
    return {"input": wave, "state": state, "sr": np.array(rate)}


NETWORKS = {
    "text detector": (OCR, "models/ch_PP-OCRv4_det_infer.onnx", image(64, 64)),
    "text recogniser": (OCR, "models/ch_PP-OCRv4_rec_infer.onnx", image(48, 64)),
    "direction": (OCR, "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", image(48, 96)),
    "voice, in a branch": (VAD, "data/silero_vad.onnx", sound(16000)),
    "voice, in the other": (VAD, "data/silero_vad.onnx", sound(8000)),
    "voice without branches": (VAD, "data/silero_vad_16k_op15.onnx", sound(16000)),
    "voice, opset 18": (VAD, "data/silero_vad_op18_ifless.onnx", sound(16000)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_at_full_rank_computes_what_it_did(name: str) -> None:
    package, file, feeds = NETWORKS[name]
    model = network(package, file)
    # One method: which one is left to other tests, and that for every layer takes its time.
    methods = ("svd", "channel_svd")
    small = rf.compress(model, rf.Ranks("full"), inputs=feeds, methods=methods)
    done = [layer for layer in small.plan.layers if layer.method]
    # All but depthwise convolutions, which have no rank to share, and the LSTM.
    assert len(done) >= 0.5 * len(small.plan.layers)
    assert all(layer.reason for layer in small.plan.layers if layer.method is None)
    for actual, expected in zip(outputs(small.model, feeds), outputs(model, feeds), strict=True):
        assert np.abs(actual - expected).max() <= 1e-3 * max(1.0, np.abs(expected).max())
    assert small.plan.macs is not None


def test_a_voice_detector_keeps_its_opinion_with_data() -> None:
    model = network(VAD, "data/silero_vad.onnx")
    rng = np.random.default_rng(0)
    batches = [
        {
            "input": np.float32(0.2 * np.cumsum(rng.standard_normal((8, 576)), 1) / 10),
            "state": rng.standard_normal((2, 8, 128), dtype=np.float32),
            "sr": np.array(16000),
        }
        for _ in range(4)
    ]
    small = rf.compress(model, rf.Budget(macs=0.7), inputs=batches[0], calibration=batches)
    before, after = small.plan.macs or (1, 1)
    assert after <= 0.7 * before
    assert small.plan.loss is not None
    assert small.plan.loss[1] < 0.05
    # The branch for the other rate was not met: it is as it was.
    feeds = sound(8000)
    for actual, expected in zip(outputs(small.model, feeds), outputs(model, feeds), strict=True):
        assert (actual == expected).all()
