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
import torch
from torch.nn import functional

from rankfold.calibration.position_sample import PositionSample, flat_index, position_sample
from rankfold.linalg import Array
from rankfold.ops import Conv, ConvTranspose, Extent, Linear, geometry, output_extent
from rankfold.ops.geometry import Geometry
from rankfold_torch.calibration.sums import working

Layer: TypeAlias = Linear | Conv | ConvTranspose

# Names of padding modes in NumPy.
_NUMPY_PAD = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def extent_of(op: Layer, shape: Sequence[int]) -> Extent:
    """Return (images, *axes) of an input of that shape; one image where it has no batch axis."""
    axes = tuple(shape[:-1]) if isinstance(op, Linear) else (shape[0], *shape[2:])
    if isinstance(op, Linear):
        return axes or (1,)
    return axes if len(shape) == op.weight.ndim else (1, *shape[1:])


def sample(
    op: Layer,
    shape: Sequence[int],
    examples: int,
    rng: np.random.Generator,
    basis: Array | None = None,
) -> PositionSample:
    """Draw output positions of an input of that shape; see `position_sample`.

    Raises:
        RankfoldError: the input leaves no output.
    """
    return position_sample(op, extent_of(op, shape), examples, rng, basis)


def places(
    drawn: PositionSample, rows: slice, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return image and position of each of these rows, on a device."""
    image, position = (torch.from_numpy(part).to(device) for part in drawn.of(rows))
    return image, position


class Inputs:
    """Input of one call of a layer, by rows.

    Args:
        op: the layer.
        x: its input.
        drawn: the positions.
    """

    def __init__(self, op: Layer, x: torch.Tensor, drawn: PositionSample) -> None:
        self._op = op
        self._drawn = drawn
        x = working(x)
        if isinstance(op, Linear):
            # A linear layer is a kernel of one tap, each position being its own origin.
            self._taps = torch.zeros(1, dtype=torch.int64, device=x.device)
            self._origins: torch.Tensor | None = None
            self._size = drawn.positions
            self._flat = x.reshape(-1, x.shape[-1])
            return
        geo = geometry(op)
        batched = x if x.ndim == op.weight.ndim else x[None]
        spatial = tuple(batched.shape[2:])
        out = output_extent(op, (len(batched), *spatial))[1:]
        padded = _stuffed(op, geo, batched) if isinstance(op, ConvTranspose) else _pad(op, batched)
        sizes = padded.shape[2:]
        stride = geo.stride if isinstance(op, Conv) else (1,) * geo.axes
        # A row is gathered from the flat input: the origin of its output position plus the offset
        # of each tap. `unfold` would make the patches of all positions, for a few that are sampled.
        taps = np.indices(geo.kernel).reshape(geo.axes, -1)
        if isinstance(op, ConvTranspose):
            # A transposed convolution meets its kernel in reverse.
            taps = np.array(geo.kernel)[:, None] - 1 - taps
        self._taps = torch.from_numpy(flat_index(taps, geo.dilation, sizes)).to(x.device)
        origins = np.indices(out).reshape(geo.axes, -1)
        self._origins = torch.from_numpy(flat_index(origins, stride, sizes)).to(x.device)
        self._size = math.prod(sizes)
        channels = padded.shape[1]
        # Channels last, so that one index takes all channels of a position.
        self._flat = padded.reshape(len(padded), channels, -1).transpose(1, 2).reshape(-1, channels)

    def take(self, rows: slice) -> torch.Tensor:
        """Return these rows, (rows, groups, d)."""
        groups = self._op.groups
        # A linear layer at all positions needs no index: the rows are the input.
        if self._origins is None and self._drawn.chosen is None:
            return self._flat[rows].reshape(rows.stop - rows.start, groups, -1)
        image, position = places(self._drawn, rows, self._flat.device)
        origin = position if self._origins is None else self._origins[position]
        index = (image * self._size + origin)[:, None] + self._taps
        values = self._flat[index.reshape(-1)]
        # (rows, taps, groups, channels of a group) to (rows, groups, channels · taps), as the
        # weight is.
        values = values.reshape(len(index), len(self._taps), groups, -1)
        return values.permute(0, 2, 3, 1).reshape(len(index), groups, -1)


def outputs(op: Layer, y: torch.Tensor, drawn: PositionSample, rows: slice) -> torch.Tensor:
    """Return an output at rows of a sample, (rows, groups, out/groups)."""
    out = len(op.weight)
    image, position = places(drawn, rows, y.device)
    if isinstance(op, Linear):
        values = y.reshape(-1, out)[image * drawn.positions + position]
    else:
        values = y.reshape(drawn.images, out, drawn.positions)[image, :, position]
    return working(values).reshape(len(image), op.groups, -1)


def every_output(op: Layer, y: torch.Tensor) -> torch.Tensor:
    """Return an output, or a gradient at it, at all positions: (rows, groups, out/groups)."""
    out = len(op.weight)
    if not isinstance(op, Linear):
        batched = y if y.ndim == op.weight.ndim else y[None]
        y = batched.reshape(len(batched), out, -1).transpose(1, 2)
    return y.reshape(-1, op.groups, out // op.groups)


def _pad(op: Conv, x: torch.Tensor) -> torch.Tensor:
    pads = geometry(op).pads(x.shape[2:])
    if op.padding_mode == "zeros":
        return functional.pad(x, [side for pair in reversed(pads) for side in pair])
    # Padded by an index of the source of each element: `functional.pad` limits how far some of
    # these modes reach.
    for axis, pair in enumerate(pads, start=2):
        if any(pair):
            mode = _NUMPY_PAD[op.padding_mode]
            source = np.pad(np.arange(x.shape[axis]), pair, mode=mode)  # type: ignore[call-overload]
            x = x.index_select(axis, torch.from_numpy(source).to(x.device))
    return x


def _stuffed(op: ConvTranspose, geo: Geometry, x: torch.Tensor) -> torch.Tensor:
    """Return the input of the convolution with stride 1 that a transposed convolution is."""
    spatial = x.shape[2:]
    sizes = [(n - 1) * s + 1 for n, s in zip(spatial, geo.stride, strict=True)]
    wide = x.new_zeros((*x.shape[:2], *sizes))
    steps = tuple(slice(None, None, s) for s in geo.stride)
    # stride - 1 zeros between neighbours.
    wide[(slice(None), slice(None), *steps)] = x
    sides = []
    for (low, high), reach, extra in zip(
        geo.pads(spatial), geo.reach, geo.output_padding, strict=True
    ):
        # Full correlation needs reach - 1 on both sides; padding cuts it, output_padding adds at
        # the end.
        sides.append((reach - 1 - low, reach - 1 - high + extra))
    return functional.pad(wide, [side for pair in reversed(sides) for side in pair])
