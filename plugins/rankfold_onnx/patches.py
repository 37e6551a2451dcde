"""Rows of a layer's input that its weight is multiplied with, at sampled output positions.

A row belongs to one output position of one image; the first axis of an activation counts images.
Rows are (groups, d) with d = in/groups · positions of the kernel, channels first, so that an output
is `weight.reshape(groups, out/groups, d) @ row` plus the bias. Only sampled rows are ever made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from rankfold.calibration.position_sample import flat_index
from rankfold.linalg import Array
from rankfold.ops import Conv, ConvTranspose, Extent, Linear, geometry, output_extent
from rankfold.plugins import PositionSample, position_sample

Layer: TypeAlias = Linear | Conv | ConvTranspose


def extent_of(op: Layer, shape: Sequence[int]) -> Extent:
    """Return (images, *axes) of an input of that shape."""
    if isinstance(op, Linear):
        return tuple(shape[:-1]) or (1,)
    return (shape[0], *shape[2:])


def sample(
    op: Layer,
    shape: Sequence[int],
    examples: int,
    rng: np.random.Generator,
    basis: Array | None = None,
) -> PositionSample:
    """Draw output positions of an input of that shape; see `position_sample`."""
    return position_sample(op, extent_of(op, shape), examples, rng, basis)


class Inputs:
    """Input of one call of a layer, by rows.

    Args:
        op: the layer.
        x: its input.
        drawn: the positions.
    """

    def __init__(self, op: Layer, x: Array, drawn: PositionSample) -> None:
        self._op = op
        self._drawn = drawn
        x = working(x)
        if isinstance(op, Linear):
            # A linear layer is a kernel of one tap, each position being its own origin.
            self._taps = np.zeros(1, np.int64)
            self._origins: Array | None = None
            self._size = drawn.positions
            self._flat = x.reshape(-1, x.shape[-1])
            return
        geo = geometry(op)
        spatial = x.shape[2:]
        out = output_extent(op, (len(x), *spatial))[1:]
        if isinstance(op, ConvTranspose):
            padded, stride = _stuffed(op, x), (1,) * geo.axes
        else:
            pads = ((0, 0), (0, 0), *geo.pads(spatial))
            padded, stride = (np.pad(x, pads) if any(map(any, pads)) else x), geo.stride
        sizes = padded.shape[2:]
        # A row is gathered from the flat input: the origin of its output position plus the offset
        # of each tap. Patches of all positions would be made for a few that are sampled.
        taps = np.indices(geo.kernel).reshape(geo.axes, -1)
        if isinstance(op, ConvTranspose):
            # A transposed convolution meets its kernel in reverse.
            taps = np.array(geo.kernel)[:, None] - 1 - taps
        self._taps = flat_index(taps, geo.dilation, sizes)
        self._origins = flat_index(np.indices(out).reshape(geo.axes, -1), stride, sizes)
        self._size = math.prod(sizes)
        channels = padded.shape[1]
        # Channels last, so that one index takes all channels of a position.
        flat = padded.reshape(len(padded), channels, -1).swapaxes(1, 2)
        self._flat = np.ascontiguousarray(flat).reshape(-1, channels)

    def take(self, rows: slice) -> Array:
        """Return these rows, (rows, groups, d)."""
        groups = self._op.groups
        # A linear layer at all positions needs no index: the rows are the input.
        if self._origins is None and self._drawn.chosen is None:
            return self._flat[rows].reshape(rows.stop - rows.start, groups, -1)
        image, position = self._drawn.of(rows)
        origin = position if self._origins is None else self._origins[position]
        index = (image * self._size + origin)[:, None] + self._taps
        values = np.take(self._flat, index.reshape(-1), axis=0)
        # (rows, taps, groups, channels of a group) to (rows, groups, channels · taps), as the
        # weight is.
        values = values.reshape(len(index), len(self._taps), groups, -1)
        return np.ascontiguousarray(values.transpose(0, 2, 3, 1)).reshape(len(index), groups, -1)


def outputs(op: Layer, y: Array, drawn: PositionSample, rows: slice) -> Array:
    """Return an output at rows of a sample, (rows, groups, out/groups)."""
    out = len(op.weight)
    image, position = drawn.of(rows)
    if isinstance(op, Linear):
        values = y.reshape(-1, out)[image * drawn.positions + position]
    else:
        values = y.reshape(drawn.images, out, drawn.positions)[image, :, position]
    return working(values).reshape(len(image), op.groups, -1)


def working(x: Array) -> Array:
    """Return an array in the precision of products: float64 as it is, all others as float32."""
    return x if x.dtype == np.float64 else x.astype(np.float32, copy=False)


def _stuffed(op: ConvTranspose, x: Array) -> Array:
    """Return the input of the convolution with stride 1 that a transposed convolution is."""
    geo, spatial = geometry(op), x.shape[2:]
    sizes = [(n - 1) * s + 1 for n, s in zip(spatial, geo.stride, strict=True)]
    wide = np.zeros((*x.shape[:2], *sizes), x.dtype)
    # stride - 1 zeros between neighbours.
    wide[(slice(None), slice(None), *(slice(None, None, s) for s in geo.stride))] = x
    for axis, ((low, high), reach, extra) in enumerate(
        zip(geo.pads(spatial), geo.reach, geo.output_padding, strict=True), start=2
    ):
        # Full correlation needs reach - 1 on both sides; padding cuts it, output_padding adds at
        # the end. What is cut by more than that is cut off the input.
        sides = (reach - 1 - low, reach - 1 - high + extra)
        pads = [(0, 0)] * wide.ndim
        pads[axis] = (max(sides[0], 0), max(sides[1], 0))
        cut = [slice(None)] * wide.ndim
        cut[axis] = slice(max(-sides[0], 0), wide.shape[axis] - max(-sides[1], 0))
        wide = np.pad(wide[tuple(cut)], pads)
    return wide
