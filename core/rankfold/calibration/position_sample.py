"""Sampled output positions of a layer's call, whose rows of inputs and outputs are summed up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rankfold.calibration.accumulators import sampled_positions
from rankfold.linalg import Array
from rankfold.ops import Conv, ConvTranspose, Extent, Linear, output_extent

_CHUNK = 2**24
"""Numbers of a block of rows and of the outputs at them: 64 MiB in float32."""


@dataclass(frozen=True, eq=False)
class PositionSample:
    """Sampled output positions of one call of a layer.

    Attributes:
        images: the number of images.
        positions: output positions of one image.
        chosen: (images, m), flat positions sampled of each image; None for all.
    """

    images: int
    positions: int
    chosen: Array | None

    @property
    def rows(self) -> int:
        """Number of sampled rows, over all images."""
        return self.images * (self.positions if self.chosen is None else self.chosen.shape[1])

    def of(self, rows: slice) -> tuple[Array, Array]:
        """Return image and position of each of these rows."""
        index = np.arange(rows.start, rows.stop)
        if self.chosen is None:
            return index // self.positions, index % self.positions
        return index // self.chosen.shape[1], self.chosen.reshape(-1)[rows]


def position_sample(
    op: Linear | Conv | ConvTranspose,
    extent: Extent,
    examples: int,
    rng: np.random.Generator,
    basis: Array | None = None,
) -> PositionSample:
    """Draw output positions, of each image on its own.

    Args:
        op: the layer.
        extent: (images, *axes) of its input.
        examples: how many are seen in all; the more, the fewer positions of each are needed.
        rng: draws.
        basis: what wide patches are projected on; see `sampled_positions`.
    """
    images, *axes = output_extent(op, extent)
    positions = math.prod(axes)
    wanted = sampled_positions(op, examples, basis)
    if wanted >= positions or images == 0:
        return PositionSample(images, positions, None)
    # The `wanted` smallest of random keys are a sample without replacement, for all images at once.
    # Sorted, they are read from memory in order.
    keys = rng.random((images, positions), dtype=np.float32)
    chosen = np.sort(np.argpartition(keys, wanted, axis=1)[:, :wanted], axis=1)
    return PositionSample(images, positions, chosen)


def flat_index(indices: Array, steps: Sequence[int], sizes: Sequence[int]) -> Array:
    """Return row-major places in an array, in whose spatial axes patches are looked up.

    Args:
        indices: (axes, ...), of each place along each axis, in units of its step.
        steps: of each axis, such as a stride or a dilation.
        sizes: of the array.
    """
    flat = np.zeros(indices[0].size, dtype=np.int64)
    for index, step, size in zip(indices, steps, sizes, strict=True):
        flat = flat * size + index.reshape(-1) * step
    return flat


def width(op: Linear | Conv | ConvTranspose) -> int:
    """Return the length d of a row of the inputs."""
    return math.prod(op.weight.shape[1:])


def chunks(op: Linear | Conv | ConvTranspose, drawn: PositionSample) -> Iterator[slice]:
    """Yield slices of the rows of a sample, of inputs and outputs, that fit into memory."""
    step = max(1, _CHUNK // (op.groups * (width(op) + op.weight.shape[0] // op.groups)))
    for start in range(0, drawn.rows, step):
        yield slice(start, min(start + step, drawn.rows))
