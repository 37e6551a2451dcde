"""Checks that moments are those of a layer."""

from __future__ import annotations

import math

import numpy as np

from rankfold.calibration.moments import LayerMoments
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import Embedding, Op


class Mismatch(Refused):
    """Moments have the shape of another layer."""


def check_moments(op: Op, moments: LayerMoments) -> None:
    """Check that moments have the shapes that a layer's have.

    Raises:
        Mismatch: they have not.
    """
    table = isinstance(op, Embedding)
    rows = op.weight.shape[1] if table else op.weight.shape[0] // op.groups
    columns = op.weight.shape[0] if table else math.prod(op.weight.shape[1:])
    inputs = moments.inputs
    if isinstance(inputs, SeparableMoment):
        taps = () if table else op.weight.shape[2:]
        expected = (op.groups, op.weight.shape[1]), (op.groups, *2 * (math.prod(taps),))
        if (inputs.variances.shape, inputs.positions.shape) != expected or table:
            raise _mismatch("inputs", inputs.shape)
    else:
        _check_shape("inputs", inputs, op.groups, columns)
    if moments.grads is not None:
        _check_shape("gradients", moments.grads, op.groups, rows)


def _check_shape(what: str, moment: Array, groups: int, size: int) -> None:
    shape = tuple(np.shape(moment))
    if shape not in ((groups, size), (groups, size, size)):
        raise _mismatch(what, shape)


def _mismatch(what: str, shape: tuple[int, ...]) -> Mismatch:
    return Mismatch(
        f"the moments of its {what} have shape {shape}, those of another layer or of an earlier "
        "rankfold; gather them for this model"
    )
