"""Our side of the comparisons."""

from __future__ import annotations

import numpy as np

from rankfold.decompose.evbmf import from_squares
from rankfold.decompose.spectrum import Spectrum
from rankfold.decompose.tucker2 import TUCKER2
from rankfold.linalg import Array
from rankfold.ops import Chain, Op
from rankfold.ops.reference import reconstruct


def tucker(op: Op) -> tuple[tuple[int, ...], Chain]:
    """The EVBMF ranks of both unfoldings and the Tucker-2 chain at them."""
    spectrum = Spectrum(op)
    ranks = tuple(
        max(1, from_squares(mode.values[0], mode.sides).rank)
        for mode in TUCKER2.modes(op, spectrum)
    )
    factored = TUCKER2.decompose(
        op, ranks, spectrum=spectrum, placement="balanced", rng=np.random.default_rng(0)
    )
    return ranks, factored.chain


def error(op: Op, chain: Chain) -> float:
    """‖W − Ŵ‖ / ‖W‖ of what the chain stands for, in float64."""
    return distance(op.weight, reconstruct(op, chain))


def distance(weight: Array, dense: Array) -> float:
    """‖W − Ŵ‖ / ‖W‖, in float64."""
    weight = weight.astype(np.float64)
    return float(np.linalg.norm(dense - weight) / np.linalg.norm(weight))
