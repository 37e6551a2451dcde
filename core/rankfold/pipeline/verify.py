"""The last check before a module reaches the user: does it compute what its op computes?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from rankfold import linalg
from rankfold.errors import RankfoldError, Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, ConvTranspose, Embedding, Linear, Op, geometry
from rankfold.ops.reference import forward, reconstruct, relative_distance

_ROWS = 4
"""Rows of the probe: a wrong transposition or geometry shows in any of them."""
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
    try:
        dense = reconstruct(op, chain)
    except RankfoldError as fault:
        raise Refused(f"the chain does not fit the layer: {fault}") from None
    measured = relative_distance(op.weight, dense)
    # Written so that NaN fails, here and below.
    if not measured <= error * 1.01 + _GRAM_ACCURACY:
        raise Refused(f"the chain has a weight error of {measured:.3g}, not {error:.3g}")
    x = _probe(op, rng)
    # The reference applies the one dense weight, with the layer's own geometry. So the module is
    # compared with something that was not made by the code that split the geometry over the stages.
    expected = linalg.host(forward(_standing_for(op, dense, chain), x))
    got = run(x)
    if got.shape != expected.shape:
        raise Refused(f"the built module gives shape {got.shape} in place of {expected.shape}")
    size = float(np.linalg.norm(expected))
    # How much rounding of the factors shows in the output depends on how they cancel: it is found
    # by trying, as a bound would be loose wherever large terms cancel.
    rounding = float(
        np.linalg.norm(linalg.host(forward(_rounded(chain, epsilon, rng), x)) - expected)
    )
    off = float(np.linalg.norm(got - expected))
    tolerance = _SLACK * rounding + (epsilon + _ACCURACY) * size + np.finfo(np.float32).tiny
    if not off <= tolerance:
        raise Refused(
            f"the built module is off by {off / max(size, np.finfo(float).tiny):.3g} of its output"
        )


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
