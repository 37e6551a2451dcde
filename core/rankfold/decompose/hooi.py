"""Higher-order orthogonal iteration on the two channel modes of a kernel.

De Lathauwer, De Moor and Vandewalle, SIAM J. Matrix Anal. Appl. 21, 2000.
"""

from __future__ import annotations

import math

from rankfold import linalg
from rankfold.decompose.spectrum import Spectrum
from rankfold.linalg import Array

LEAST_SWEEPS = 2
"""Fewer than these say nothing of whether the error has settled."""
_PRECISE = 1e-3
"""Relative error below which projections run in float64: its square is 1e-6 of the energy, near the
rounding of sums in float32."""
_SMALL = 500_000
"""Elements below which float32 saves no time worth having."""
_MORE_SWEEPS = 40
_TOLERANCE = 1e-4
"""Relative change of the squared error between sweeps at which it counts as settled."""
_CHEAP = 50_000_000
"""Multiplications of all sweeps together that are cheap: 10 ms at 10 GFLOP/s."""


def hooi(spectrum: Spectrum, left: Array, right: Array) -> tuple[Array, Array, Array]:
    """Improve orthonormal factors by HOOI, and return (core, left, right).

    A large tensor is projected in float32, unless what is left out is too small to be seen in it.

    Args:
        spectrum: of the weight.
        left: (groups, out, r_out).
        right: (groups, in, r_in).
    """
    # For orthonormal U and V the best core is W ×₁ Uᵀ ×₂ Vᵀ, and ‖W − Ŵ‖² = ‖W‖² − ‖core‖². With V
    # fixed, ‖core‖ is largest for the leading left singular vectors U of the output unfolding of
    # W ×₂ Vᵀ; likewise V. Where one of the ranks is full, its factor is any basis, the other the
    # HOSVD's, and that is the optimum already.
    groups, out, into, positions = spectrum.tensor.shape
    fixed = left.shape[2] == out or right.shape[2] == into
    small = math.prod(spectrum.tensor.shape) < _SMALL
    precise = fixed or small
    if not precise:
        least = max(spectrum.left_out("output", left), spectrum.left_out("input", right))
        precise = least < _PRECISE**2 * spectrum.energy
    tensor = spectrum.tensor if precise else linalg.single(spectrum.tensor)
    by_input = linalg.contiguous(tensor.swapaxes(2, 3)).reshape(groups, -1, into)

    def core_of(left: Array, right: Array) -> Array:
        half = (by_input @ linalg.cast(right, tensor.dtype)).reshape(groups, out, -1)
        core: Array = linalg.cast(left.mT, tensor.dtype) @ half
        return linalg.double(core).reshape(groups, -1, positions, right.shape[2]).swapaxes(2, 3)

    if fixed:
        return core_of(left, right), left, right
    by_output = linalg.contiguous(linalg.permuted(tensor, (0, 2, 3, 1))).reshape(groups, -1, out)
    swept = _swept(by_input, by_output, left, right, spectrum.energy)
    core = core_of(*swept)
    if precise:  # where rounding may have made it worse
        start = core_of(left, right)
        if linalg.inner(start, start) > linalg.inner(core, core):
            return start, left, right
    return core, *swept


def _swept(
    by_input: Array, by_output: Array, left: Array, right: Array, energy: float
) -> tuple[Array, Array]:
    """Sweep once and a half, or more often until the error settles where sweeps are cheap.

    The half is a step of subspace iteration, at a fifth of the cost of eigenvectors: a sweep and a
    half end within 0.01 % of the error that more sweeps lead to.

    Args:
        by_input: (groups, out · positions, in).
        by_output: (groups, in · positions, out).
        left: (groups, out, r_out).
        right: (groups, in, r_in).
        energy: the squared norm of the tensor.
    """
    into, out = by_input.shape[2], by_output.shape[2]
    work = math.prod(by_input.shape) * (left.shape[2] + right.shape[2])
    most = min(_MORE_SWEEPS, _CHEAP // work)
    kept = 0.0
    for sweep in range(max(1, most)):
        left = linalg.leading(_projected(by_input, right, out), left.shape[2])
        projected = _projected(by_output, left, into)
        right = linalg.leading(projected, right.shape[2])
        if most <= LEAST_SWEEPS:
            break
        turned = linalg.double(right.mT) @ linalg.double(projected)
        before, kept = kept, linalg.inner(turned, turned)
        if sweep + 1 >= LEAST_SWEEPS and kept - before <= _TOLERANCE * (energy - kept):
            return left, right
    projected = _projected(by_input, right, out)
    moved = projected @ (projected.mT @ linalg.cast(left, projected.dtype))
    left = linalg.double(linalg.orthonormal(moved))
    return left, right


def _projected(unfolded: Array, factor: Array, size: int) -> Array:
    """Multiply (groups, size · positions, n) by (groups, n, rank), as (groups, size, -1)."""
    projected: Array = unfolded @ linalg.cast(factor, unfolded.dtype)
    return projected.reshape(unfolded.shape[0], size, -1)
