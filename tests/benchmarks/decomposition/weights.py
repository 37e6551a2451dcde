"""Weights with spectra like those of trained layers: power laws under noise; seeded, float32.

Both channel modes fall off as the square root of the index, and a tenth of the standard deviation
is white noise.
"""

from __future__ import annotations

import numpy as np

from rankfold.linalg import Array

EXPONENT = 0.5
NOISE = 0.1
_ORTHOGONAL = 4095  # a longer side would take long to orthogonalise


def kernel(out: int, into: int, size: int, seed: int) -> Array:
    """Of a convolution, (out, in, size, size)."""
    rng = np.random.default_rng(seed)
    left, right = _mode(out, rng), _mode(into, rng)
    core = rng.standard_normal((size * size, out, into))
    slices = np.matmul(np.matmul(left, core), right.T)
    return _noisy(slices.transpose(1, 2, 0), rng).reshape(out, into, size, size)


def matrix(out: int, into: int, seed: int) -> Array:
    """Of a linear layer, (out, in): above 4095 rows or columns a scaled product of Gaussians."""
    if max(out, into) <= _ORTHOGONAL:
        return kernel(out, into, 1, seed)[:, :, 0, 0]
    rng = np.random.default_rng(seed)
    inner = min(out, into)
    left = rng.standard_normal((out, inner), dtype=np.float32)
    left *= np.arange(1, inner + 1, dtype=np.float32) ** -EXPONENT
    return _noisy(left @ rng.standard_normal((inner, into), dtype=np.float32), rng)


def _mode(size: int, rng: np.random.Generator) -> Array:
    """Orthonormal columns that fall off by the power law."""
    basis, _ = np.linalg.qr(rng.standard_normal((size, size)))
    scaled: Array = basis * np.arange(1, size + 1) ** -EXPONENT
    return scaled


def _noisy(weight: Array, rng: np.random.Generator) -> Array:
    noisy = weight / weight.std() + NOISE * rng.standard_normal(weight.shape)
    return np.ascontiguousarray(noisy, dtype=np.float32)
