"""The last check before a module reaches the user: does it compute what its op computes?

Of a large layer the weight is compared in single precision, and the module at a sample of outputs:
to do all of it in float64 would take as long as a decomposition by sampling does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from rankfold import linalg
from rankfold.errors import RankfoldError, Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, ConvTranspose, Embedding, Linear, Op, geometry
from rankfold.ops.interpolation import without_pivots
from rankfold.ops.reference import forward, reconstruct, relative_distance

_ROWS = 4
"""Rows of the probe: a wrong transposition or geometry shows in any of them."""
_WHOLE = 2**16
"""Numbers in a weight up to which all is compared in float64, which takes no longer there than the
calls do: with 2**20 the checks of a ResNet-50 take 1.7 times as long."""
_SAMPLE = 64
"""Outputs of a module in the place of a larger layer that are compared: a wrong layout shows in any
of them."""
_BLOCK = 256
"""Outputs that are multiplied out at once: 4 MB of a weight with 4096 inputs."""
_SLACK = 4.0
"""A module may be off by this many times the rounding of its own weights, which is one draw of a
random quantity: frameworks add up in other orders and with fused operations."""
_ACCURACY = 1e-10
"""Relative error of the reference itself, in float64, through chains of a few stages."""
_GRAM_ACCURACY = 1e-6
"""Errors that were announced from eigenvalues of a Gram matrix are roots of differences, so that
half of the digits of float64 are left, and less for an ill-conditioned weight."""


def check_chain(
    op: Op,
    chain: Chain,
    error: float,
    run: Callable[[Array], Array],
    epsilon: float,
    rng: np.random.Generator,
) -> None:
    """Compare a built module with the op it replaces, on small random inputs.

    Two things must hold: the weight the chain stands for is as close to the op's as was announced,
    and the module's output is that of the op with this weight in its place, geometry included.

    Args:
        op: the layer.
        chain: the ops the module was built from.
        error: the announced ‖W − Ŵ‖ / ‖W‖.
        run: from an input to the output of the module.
        epsilon: machine epsilon of the module's dtype.
        rng: draws the input.

    Raises:
        Refused: one of the two does not hold.
    """
    chain = without_pivots(chain)  # of which parts, and roundings, are not interpolative
    rows = _sampled_outputs(op, chain, rng)
    try:
        measured = _weight_error(op, chain, error * 1.01 + _GRAM_ACCURACY)
        part = op if rows is None else _part(op, rows)
        stages = chain if rows is None else _part_of_chain(chain, rows)
        dense = reconstruct(part, stages)
    except RankfoldError as fault:
        raise Refused(f"the chain does not fit the layer: {fault}") from None
    # Written so that NaN fails, here and below.
    if not measured <= error * 1.01 + _GRAM_ACCURACY:
        raise Refused(f"the chain has a weight error of {measured:.3g}, not {error:.3g}")
    x = _probe(part, rng)
    # The reference applies the one dense weight, with the layer's own geometry. So the module is
    # compared with something that was not made by the code that split the geometry over the stages.
    expected = linalg.host(forward(_standing_for(part, dense, stages), x))
    got = _output(op, run, x, rows, expected.shape)
    size = float(np.linalg.norm(expected))
    # How much rounding of the factors shows in the output depends on how they cancel: it is found
    # by trying, as a bound would be loose wherever large terms cancel.
    rounding = float(
        np.linalg.norm(linalg.host(forward(_rounded(stages, epsilon, rng), x)) - expected)
    )
    off = float(np.linalg.norm(got - expected))
    tolerance = _SLACK * rounding + (epsilon + _ACCURACY) * size + np.finfo(np.float32).tiny
    if not off <= tolerance:
        raise Refused(
            f"the built module is off by {off / max(size, np.finfo(float).tiny):.3g} of its output"
        )


def _output(
    op: Op,
    run: Callable[[Array], Array],
    x: Array,
    rows: Array | None,
    shape: tuple[int, ...],
) -> Array:
    """Return the output of the module at some outputs, or for some rows of a table.

    Args:
        op: the layer.
        run: from an input to the output of the module.
        x: the probe; of a table, indices of `rows`.
        rows: which outputs, which rows; None for all.
        shape: that the result has to have.

    Raises:
        Refused: the output of the module has another shape.
    """
    axis: int | None = None
    if rows is None or isinstance(op, Embedding):
        got, wanted = run(x if rows is None else rows[x]), shape
    else:
        axis = len(shape) - 1 if isinstance(op, Linear) else 1
        got, wanted = run(x), (*shape[:axis], len(op.weight), *shape[axis + 1 :])
    if got.shape != wanted:
        raise Refused(f"the built module gives shape {got.shape} in place of {wanted}")
    return got if axis is None or rows is None else np.take(got, rows, axis)


def _weight_error(op: Op, chain: Chain, limit: float) -> float:
    """Return ‖W − Ŵ‖ / ‖W‖, in single precision where that tells it from a limit."""
    weight = op.weight
    if math.prod(weight.shape) > _WHOLE and linalg.epsilon(weight) >= np.finfo(np.float32).eps:
        # What is over- or underflow here is in range in float64, which has the last word.
        squared = total = 0.0
        with np.errstate(all="ignore"):
            for rows in _blocks(op, chain):
                part, stages = _part(op, rows), _part_of_chain(chain, rows)
                single = linalg.single(part.weight)
                difference = reconstruct(part, stages, linalg.single) - single
                squared += linalg.inner(difference, difference)
                total += linalg.inner(single, single)
        if 0.0 < total < math.inf and math.sqrt(squared / total) <= limit:
            return math.sqrt(squared / total)
    return relative_distance(weight, reconstruct(op, chain))


def _blocks(op: Op, chain: Chain) -> Iterator[slice]:
    """Yield the outputs of a layer, the rows of a table, in blocks that a cache holds."""
    size = len(op.weight)
    step = _BLOCK if _divides(op, chain) else size
    return (slice(start, start + step) for start in range(0, size, step))


def _sampled_outputs(op: Op, chain: Chain, rng: np.random.Generator) -> Array | None:
    """Draw some outputs of a large layer, or rows of a large table; None for all of a layer."""
    size = len(op.weight)
    if math.prod(op.weight.shape) <= _WHOLE or size <= _SAMPLE or not _divides(op, chain):
        return None
    rows: Array = rng.choice(size, _SAMPLE, replace=False)
    return rows


def _divides(op: Op, chain: Chain) -> bool:
    """Return whether some outputs of a layer are those of the same part of its last stage."""
    end = chain[0] if isinstance(op, Embedding) else chain[-1]
    return op.groups == end.groups == 1 and len(end.weight) == len(op.weight)


def _part(op: Op, rows: Array | slice) -> Op:
    """Return the layer with some of its outputs, the table with some of its rows."""
    index = rows if isinstance(rows, slice) else linalg.like(rows, op.weight)
    if isinstance(op, Embedding) or op.bias is None:
        return replace(op, weight=op.weight[index])
    return replace(op, weight=op.weight[index], bias=op.bias[index])


def _part_of_chain(chain: Chain, rows: Array | slice) -> Chain:
    if isinstance(chain[0], Embedding):
        return (_part(chain[0], rows), *chain[1:])
    return (*chain[:-1], _part(chain[-1], rows))


def _standing_for(op: Op, dense: Array, chain: Chain) -> Op:
    if isinstance(op, Embedding):
        return replace(op, weight=dense)
    return replace(op, weight=dense, bias=chain[-1].bias)


def _rounded(chain: Chain, epsilon: float, rng: np.random.Generator) -> Chain:
    """Return the chain with errors of the size of rounding to that precision."""
    return tuple(
        replace(
            stage,
            weight=linalg.double(stage.weight)
            * linalg.like(1.0 + epsilon * rng.uniform(-0.5, 0.5, stage.weight.shape), stage.weight),
        )
        for stage in chain
    )


def _probe(op: Op, rng: np.random.Generator) -> Array:
    if isinstance(op, Embedding):
        return rng.integers(0, len(op.weight), size=_ROWS)
    if isinstance(op, Linear):
        return rng.standard_normal((_ROWS, op.weight.shape[1] * op.groups))
    spatial = _smallest(op)
    return rng.standard_normal((1, op.weight.shape[1] * op.groups, *spatial))


def _smallest(op: Conv | ConvTranspose) -> tuple[int, ...]:
    """Return a spatial size that no padding mode refuses and that gives two outputs an axis."""
    geo = geometry(op)
    widest = [max(pair) for pair in geo.pads((1,) * geo.axes)]
    if isinstance(op, ConvTranspose):
        return tuple(2 + 2 * -(-p // s) for p, s in zip(widest, geo.stride, strict=True))
    # Reflection needs more positions than it pads. One stride beyond the least size gives a second
    # output.
    return tuple(max(r, p + 1) + s for r, p, s in zip(geo.reach, widest, geo.stride, strict=True))
