"""Higher-order orthogonal iteration on the two channel modes of a kernel.

De Lathauwer, De Moor and Vandewalle, SIAM J. Matrix Anal. Appl. 21, 2000; started from one factor
alone, as in the sequentially truncated HOSVD (Vannieuwenhoven, Vandebril and Meerbergen, SIAM J.
Sci. Comput. 34, 2012).
"""

from __future__ import annotations

import math

from rankfold import linalg
from rankfold.decompose.spectrum import Spectrum
from rankfold.linalg import Array

_PRECISE = 1e-2
"""Relative error below which all is done in float64: its square is 1e-4 of the energy, which sums
in float32 tell to 1e-7 of it, and so to a thousandth."""
_SMALL = 100_000
"""Elements below which float32 saves no time worth having."""
_SETTLING = 1e-2
"""Relative decrease of the squared error by a solve, at which one more step is the last: 0.5 % of
the error. For 3x3 kernels and larger ones a solve gains a tenth of what the one before it did."""
_SETTLED = 1e-4
"""The same where solves are cheap; what it leaves is about 0.1 % for white noise, where settling is
slowest."""
_CHEAP = 100_000_000
"""Multiplications of all cheap solves together: 10 ms at 10 GFLOP/s."""
_MOST_CHEAP = 80
"""Solves at most, however cheap they are: twice those after which none of 60 small kernels, half of
them noise, lost more than if it had had 1000. With 20 they lost up to 0.2 %."""
_MOST_SOLVES = 12
"""At most, where they are not cheap: kernels of one to three positions settle slowly."""
_OUTPUT, _INPUT = 0, 1


def hooi(spectrum: Spectrum, ranks: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Compute core and orthonormal factors, (core, left, right), of a kernel by HOOI.

    A large tensor is handled in float32, unless what is left out is too small to be seen in it.

    Args:
        spectrum: of the weight.
        ranks: (output rank, input rank), per group.

    Returns:
        (groups, r_out, r_in, positions), (groups, out, r_out) and (groups, in, r_in), in float64.
    """
    # For orthonormal U and V the best core is W ×₁ Uᵀ ×₂ Vᵀ, and ‖W − Ŵ‖² = ‖W‖² − ‖core‖². With V
    # fixed, ‖core‖ is largest for the leading left singular vectors U of the output unfolding of
    # W ×₂ Vᵀ; likewise V. Where one of the ranks is full, its factor is any basis, the other the
    # HOSVD's, and that is the optimum already.
    groups, out, into, positions = spectrum.tensor.shape
    r_out, r_in = ranks
    energy = spectrum.energy
    if r_out == out or r_in == into:
        left, right = spectrum.leading("output", r_out), spectrum.leading("input", r_in)
        core = left.mT @ _projected(_by_position(spectrum.tensor), _INPUT, right)
    else:
        coarse = math.prod(spectrum.tensor.shape) >= _SMALL
        if coarse:
            tensor = _by_position(linalg.single(spectrum.tensor))
            core, left, right = _swept(tensor, ranks, energy)
            coarse = energy - linalg.inner(core, core) >= _PRECISE**2 * energy
        if not coarse:
            core, left, right = _swept(_by_position(spectrum.tensor), ranks, energy)
    core = core.reshape(groups, r_out, positions, r_in).swapaxes(2, 3)
    return core, left, right


def _by_position(tensor: Array) -> Array:
    """Lay (groups, out, in, positions) out as (groups, out, positions, in)."""
    return linalg.contiguous(tensor.swapaxes(2, 3))


def _swept(tensor: Array, ranks: tuple[int, int], energy: float) -> tuple[Array, Array, Array]:
    """Solve for the two factors in turns until the error settles; return core, left and right.

    Args:
        tensor: (groups, out, positions, in).
        ranks: (output rank, input rank).
        energy: the squared norm of the tensor.

    Returns:
        The core (groups, r_out, positions · r_in) and the factors, in float64.
    """
    # In this layout, the positions between the channels, W ×₂ Vᵀ and W ×₁ Uᵀ are plain products,
    # and what they give is an unfolding without a transposition. The factor of the smaller side
    # comes first, from the tensor itself, since its eigenvectors are the cheaper ones. At the end
    # a step of subspace iteration gains most of what further eigenvectors would, in less time.
    groups, out, _, into = tensor.shape
    side = _INPUT if into <= out else _OUTPUT
    unfolding = tensor.reshape(groups, -1, into).mT if side else tensor.reshape(groups, out, -1)
    factors: dict[int, Array] = {}
    kept = 0.0
    cheap = min(_MOST_CHEAP, _CHEAP // (math.prod(tensor.shape) * sum(ranks)))
    for solves in range(1, max(_MOST_SOLVES, cheap) + 1):
        pairs = linalg.leading_pairs(unfolding, ranks[side])
        factors[side] = pairs.vectors
        unfolding = _projected(tensor, side, pairs.vectors)
        side = _OUTPUT if side else _INPUT
        # what the first factor keeps is before any projection, and no measure of the others
        before, kept = kept, float(pairs.values.sum())
        settled = _SETTLED if solves < cheap else _SETTLING
        if solves > 2 and kept - before <= settled * (energy - kept):
            break
    factors[side] = _stepped(unfolding, factors[side])
    core = linalg.cast(factors[side].mT, tensor.dtype) @ unfolding
    if side:
        core = core.mT.reshape(groups, ranks[0], -1)
    return linalg.double(core), factors[_OUTPUT], factors[_INPUT]


def _projected(tensor: Array, side: int, factor: Array) -> Array:
    """Project one channel mode on a factor, and return the unfolding along the other.

    Args:
        tensor: (groups, out, positions, in).
        side: of the factor.
        factor: (groups, out or in, rank).
    """
    groups, out, _, into = tensor.shape
    factor = linalg.cast(factor, tensor.dtype)
    if side:
        return (tensor.reshape(groups, -1, into) @ factor).reshape(groups, out, -1)
    projected: Array = factor.mT @ tensor.reshape(groups, out, -1)
    return projected.reshape(groups, -1, into).mT


def _stepped(unfolding: Array, factor: Array) -> Array:
    """Move a basis (groups, n, rank) towards the leading subspace by a step of iteration."""
    basis = linalg.cast(factor, unfolding.dtype)
    rows, columns = unfolding.shape[1:]
    if rows <= columns and 4 * factor.shape[2] > rows:  # fewer products by way of A Aᵀ
        moved = (unfolding @ unfolding.mT) @ basis
    else:
        moved = unfolding @ (unfolding.mT @ basis)
    return linalg.double(linalg.orthonormal(moved))
