"""Weights with decaying spectra, and decompositions of them by name."""

from __future__ import annotations

import numpy as np

from rankfold.decompose.base import Decomposition, Factorization, Placement
from rankfold.decompose.spectrum import Spectrum
from rankfold.ops import Op
from rankfold.plugins.registry import registry

METHODS = ("svd", "channel_svd", "spatial_svd", "tucker2", "cp", "cp3")


def method(name: str) -> Decomposition:
    return registry().methods([name])[name]


def spectral(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """A weight with decaying spectra along its first two modes."""
    weight = rng.standard_normal(shape)
    for mode in (0, 1):
        decay = (1.0 + np.arange(shape[mode])) ** -0.8
        mixing = np.linalg.qr(rng.standard_normal((shape[mode], shape[mode])))[0] * decay
        weight = np.moveaxis(np.tensordot(mixing, weight, axes=(1, mode)), 0, mode)
    return weight


def factored(
    op: Op, name: str, ranks: tuple[int, ...], placement: Placement = "balanced"
) -> Factorization:
    return method(name).decompose(
        op, ranks, spectrum=Spectrum(op), placement=placement, rng=np.random.default_rng(0)
    )


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
