"""The networks, their data, and what their outputs are judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tests.benchmarks.onnx import text

import onnx
from rankfold_onnx import runtime

Array = np.ndarray
Outputs = list[Array]

_TEST_SEED = 1000


@dataclass(frozen=True, eq=False)
class Data:
    """Batches of inputs by name, and what is known of the test data."""

    calibration: list[dict[str, Array]]
    test: list[dict[str, Array]]
    truth: Any


@dataclass(frozen=True)
class Subject:
    """One network.

    Attributes:
        name: for people.
        package: that ships it.
        file: in the folder of the packages.
        data: from the model and the seed of the calibration data.
        scores: from outputs on the test data, those of the original and the truth, by name.
        about: the data.
        shares: of the multiply-accumulates to compress it to.
    """

    name: str
    package: str
    file: str
    data: Callable[[Any, int], Data]
    scores: Callable[[Outputs, Outputs, Any], Mapping[str, float]]
    about: str
    shares: tuple[float, ...] = (0.7, 0.5)

    def model(self, folder: Path) -> Any:
        """The network."""
        return onnx.load(folder / self.file)


def outputs(model: Any, batches: list[dict[str, Array]]) -> Outputs:
    """The first output on all batches, by onnxruntime."""
    running = runtime.session(model)
    return [running.run(None, batch)[0] for batch in batches]


def _batches(x: Array, size: int) -> list[dict[str, Array]]:
    return [{"x": x[first : first + size]} for first in range(0, len(x), size)]


def _lines(width: int, model: Any, seed: int) -> Data:
    drawn, _ = text.lines(text.CALIBRATION_FONTS, 64, width, np.random.default_rng(seed))
    test, texts = text.lines(text.TEST_FONTS, 160, width, np.random.default_rng(_TEST_SEED))
    characters = next(p.value for p in model.metadata_props if p.key == "character")
    known = ["", *characters.splitlines(), " "]
    return Data(_batches(drawn, 16), _batches(test, 16), (texts, known))


def _turned(width: int, model: Any, seed: int) -> Data:
    def drawn(fonts: tuple[str, ...], count: int, seed: int) -> tuple[Array, Array]:
        images, _ = text.lines(fonts, count, width, np.random.default_rng(seed))
        turned = np.arange(count) % 2
        images[turned == 1] = images[turned == 1, :, ::-1, ::-1]
        return images, turned

    test, turned = drawn(text.TEST_FONTS, 320, _TEST_SEED)
    calibration, _ = drawn(text.CALIBRATION_FONTS, 128, seed)
    return Data(_batches(calibration, 16), _batches(test, 16), turned)


def _pages(size: int, model: Any, seed: int) -> Data:
    mean, spread = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

    def drawn(fonts: tuple[str, ...], count: int, seed: int) -> list[dict[str, Array]]:
        pages = text.pages(fonts, count, size, np.random.default_rng(seed)) / 255
        scaled = (pages - mean[:, None, None]) / spread[:, None, None]
        return _batches(scaled.astype(np.float32), 4)

    calibration = drawn(text.CALIBRATION_FONTS, 16, seed)
    return Data(calibration, drawn(text.TEST_FONTS, 24, _TEST_SEED), None)


def _sounds(model: Any, seed: int) -> Data:
    from tests.benchmarks.real import sounds

    men = sounds.recordings(sounds.MEN, (0.0, 1.0), sounds.CALIBRATION, (32, 16), seed)
    women = sounds.recordings(sounds.WOMEN, (0.5, 2.0), sounds.TEST, (60, 16), _TEST_SEED)
    running = runtime.session(model)

    def chunks(waves: Array) -> list[dict[str, Array]]:
        """One batch for each chunk, with the state that the original is in by then."""
        batches, state = [], np.zeros((2, len(waves), 128), np.float32)
        for chunk in range(waves.shape[1]):
            feeds = {"input": np.ascontiguousarray(waves[:, chunk]), "state": state}
            batches.append({**feeds, "sr": np.array(16000)})
            _, state = running.run(None, batches[-1])
        return batches

    return Data(chunks(men.numpy()), chunks(women.numpy()), None)


def _characters(outs: Outputs, original: Outputs, truth: Any) -> Mapping[str, float]:
    texts, known = truth
    read, before = (_decoded(np.concatenate(o), known) for o in (outs, original))
    letters = sum(map(len, texts))
    wrong = sum(_edits(a, b) for a, b in zip(read, texts, strict=True))
    same = np.mean([a == b for a, b in zip(read, before, strict=True)])
    lines = np.mean([a == b for a, b in zip(read, texts, strict=True)])
    return {
        "characters right, %": 100 * (1 - wrong / letters),
        "lines right, %": 100 * float(lines),
        "lines as the original, %": 100 * float(same),
    }


def _decoded(shares: Array, known: list[str]) -> list[str]:
    """Text by the likeliest character at each place, repetitions and blanks left out."""
    read = []
    for best in shares.argmax(-1):
        kept = [i for i, last in zip(best, [0, *best[:-1]], strict=True) if i and i != last]
        read.append("".join(known[i] for i in kept).strip())
    return read


def _edits(a: str, b: str) -> int:
    """Least number of characters to insert, delete or exchange."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


def _directions(outs: Outputs, original: Outputs, truth: Any) -> Mapping[str, float]:
    now, before = (np.concatenate(o).argmax(1) for o in (outs, original))
    return {
        "accuracy, %": 100 * float((now == truth).mean()),
        "as the original, %": 100 * float((now == before).mean()),
    }


def _regions(outs: Outputs, original: Outputs, truth: Any) -> Mapping[str, float]:
    """Overlap of the pixels that are taken for text, over their union."""
    now, before = (np.concatenate(o) > 0.3 for o in (outs, original))
    return {
        "overlap with the original, %": 100 * float((now & before).sum() / (now | before).sum())
    }


def _decisions(outs: Outputs, original: Outputs, truth: Any) -> Mapping[str, float]:
    now, before = (np.concatenate(o) for o in (outs, original))
    return {
        "as the original, %": 100 * float(((now > 0.5) == (before > 0.5)).mean()),
        "distance of the probabilities": float(np.abs(now - before).mean()),
    }


_MODELS = "rapidocr_onnxruntime/models"
SUBJECTS = {
    "recogniser": Subject(
        "PP-OCRv4 text recogniser, 2.7 M parameters",
        "rapidocr_onnxruntime",
        f"{_MODELS}/ch_PP-OCRv4_rec_infer.onnx",
        partial(_lines, 320),
        _characters,
        "64 lines of 4 to 10 letters and digits in sans-serif fonts; tested on 160 lines in other "
        "fonts, with serifs for the most part",
    ),
    "detector": Subject(
        "PP-OCRv4 text detector, 1.2 M parameters",
        "rapidocr_onnxruntime",
        f"{_MODELS}/ch_PP-OCRv4_det_infer.onnx",
        partial(_pages, 320),
        _regions,
        "16 pages of lines in sans-serif fonts; tested on 24 pages in other fonts",
    ),
    "direction": Subject(
        "PP-OCRv2 classifier of the direction of a line, 0.1 M parameters",
        "rapidocr_onnxruntime",
        f"{_MODELS}/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        partial(_turned, 192),
        _directions,
        "128 lines in sans-serif fonts, half of them upside down; tested on 320 in other fonts",
        # Pointwise layers of 8 to 200 channels: at 70 % no way is much better than a guess.
        shares=(0.9, 0.8, 0.7, 0.5),
    ),
    "silero": Subject(
        "Silero VAD for 16 kHz, 0.3 M parameters",
        "silero_vad",
        "silero_vad/data/silero_vad_16k_op15.onnx",
        _sounds,
        _decisions,
        "512 chunks of synthesised men's speech, notes and noise; tested on 960 of women's speech, "
        "other notes and noises. The LSTM is left alone, and not among the MACs",
    ),
}
