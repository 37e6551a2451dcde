"""What is compressed: a network, its data, how it is trained and judged, and how small it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.benchmarks.accuracy import data, networks, training
from tests.benchmarks.accuracy.data import Data
from torch import nn


@dataclass(frozen=True)
class Subject:
    """One network on one data set.

    Attributes:
        name: for tables.
        network: makes it, untrained.
        data: makes the data.
        epochs: of training.
        rate: the highest learning rate of training.
        score: of a model on the test data.
        unit: of the score.
        better: 1 where a higher score is better, -1 where a lower one is.
        shares: of the MACs, what is kept; EVBMF adds its own.
        calibration: the number of calibration examples.
        loss: what the data-aware methods minimise.
        tuning: epochs of fine-tuning.
    """

    name: str
    network: Callable[[], nn.Module]
    data: Callable[[], Data]
    epochs: float
    rate: float
    score: Callable[[nn.Module, Data], float]
    unit: str
    better: int
    shares: tuple[float, ...]
    calibration: int = 256
    loss: str = "outputs"
    tuning: float = 0.5


SUBJECTS = {
    "resnet": Subject(
        "ResNet with BatchNorm, digits",
        lambda: networks.ResNet(10),
        data.digits,
        12,
        3e-3,
        training.accuracy,
        "accuracy (%)",
        1,
        (0.1, 0.04),
        tuning=2,
    ),
    "vgg": Subject(
        "VGG-like, noisy glyphs",
        lambda: networks.vgg(len(data.GLYPHS)),
        data.glyphs,
        5,
        1e-3,
        training.accuracy,
        "accuracy (%)",
        1,
        (0.1, 0.05),
    ),
    "transformer": Subject(
        "transformer, Python source",
        networks.Transformer,
        data.source_text,
        6,
        2e-3,
        training.perplexity,
        "perplexity per byte",
        -1,
        (0.6, 0.4),
        loss="cross_entropy",
        tuning=0.25,
    ),
}
