"""Moments of another layer are told by their shapes."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.calibration.moment_checks import Mismatch, check_moments
from rankfold.calibration.moments import LayerMoments
from rankfold.ops import Conv, Embedding, Linear, Op

OPS: dict[str, tuple[Op, tuple[int, int, int]]] = {
    "linear": (Linear(np.ones((11, 17))), (1, 17, 11)),
    "grouped": (Conv(np.ones((10, 3, 2, 5)), groups=2), (2, 30, 5)),
    "table": (Embedding(np.ones((23, 9))), (1, 23, 9)),
}


def moments(groups: int, inputs: int, grads: int, *, full: bool) -> LayerMoments:
    shapes = [(groups, size, size) if full else (groups, size) for size in (inputs, grads)]
    return LayerMoments(
        np.ones(shapes[0]),
        np.ones((groups, inputs)),
        np.ones(shapes[1]),
        samples=7,
        positions_per_example=1.0,
    )


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("name", OPS)
def test_moments_of_the_layer_are_taken(name: str, full: bool) -> None:
    op, sizes = OPS[name]
    check_moments(op, moments(*sizes, full=full))


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("name", OPS)
def test_moments_of_another_layer_are_refused(name: str, full: bool) -> None:
    op, (groups, inputs, grads) = OPS[name]
    with pytest.raises(Mismatch, match="inputs"):
        check_moments(op, moments(groups, inputs + 1, grads, full=full))
    with pytest.raises(Mismatch, match="gradients"):
        check_moments(op, moments(groups, inputs, grads + 1, full=full))
    with pytest.raises(Mismatch):
        check_moments(op, moments(groups + 1, inputs, grads, full=full))
