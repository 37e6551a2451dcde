"""Empirical variational Bayesian matrix factorisation: the rank of a noisy matrix.

The global analytic solution of Nakajima, Sugiyama, Babacan and Tomioka (JMLR 14, 2013), from the
squared singular values alone. With L ≤ M, α = L/M and x = γ²/(Mσ²), a component is kept where
x > x̄ = (1 + τ*)(1 + α/τ*), τ* being the root of Φ(τ) + Φ(τ/α) = 0 with Φ(z) = log(1+z)/z − ½. An
unknown noise variance σ² is the global minimiser of the free energy

    Ω(σ²) = Σ γ²/(Mσ²) + L log σ² + Σ_{x>x̄} [log(1+τ(x)) + α log(1+τ(x)/α) − τ(x)].

Ω has many local minima, so it is evaluated on a grid of log σ² (uniform points and the places where
a component enters) and refined in the best cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from rankfold import linalg
from rankfold.errors import RankfoldError
from rankfold.faults import told
from rankfold.linalg import Array

_CLAMP = 1e-13
"""Least square relative to the largest: eigenvalues of a Gram matrix are rounding below it."""
_GRID = 128
"""Even points of log σ²; of the places where a component enters, at most twice as many."""
_CELLS = 6
"""Cells of the grid that are narrowed: the lowest point need not lie beside the lowest minimum. Of
400 matrices, with and without structure, one had another rank with one cell, and none with two."""
_POINTS = 17
"""Points of a cell in each round."""
_ROUNDS = 9
"""Each round leaves 2/16 of a cell's width: nine make it 8⁻⁹ ≈ 7e-9 of what it was."""
_LEAST_NOISE = 1e-100
"""Least σ² in units of the mean square: x = γ²/(Mσ²) and its square stay finite."""
_LEAST = 1e-200
"""Of the trace of a Gram matrix, and one over the most: elsewhere squares leave float64."""


@dataclass(frozen=True, eq=False)
class EVBMF:
    """Rank, noise and shrunk singular values that EVBMF finds in an (L, M) matrix.

    Attributes:
        rank: the number of components above the noise; 0 where no structure is found.
        sigma2: the noise variance of a matrix entry.
        singular_values: (rank,), shrunk to the posterior means, descending.

    Example:
        >>> noise = np.random.default_rng(0).standard_normal((60, 80))
        >>> result = rf.evbmf(noise + np.outer(np.ones(60), np.ones(80)), sigma2=1.0)
        >>> result.rank, result.singular_values.shape
        (1, (1,))
    """

    rank: int
    sigma2: float
    singular_values: Array


def evbmf(matrix: Array, sigma2: float | None = None) -> EVBMF:
    """EVBMF of any finite matrix, wide or tall, at any scale.

    Args:
        matrix: (L, M) or (M, L).
        sigma2: the noise variance of an entry, where it is known.

    Raises:
        RankfoldError: not a matrix, empty, or not finite; sigma2 not positive.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> left, right = rng.standard_normal((200, 8)), rng.standard_normal((8, 300))
        >>> noise = 0.1 * rng.standard_normal((200, 300))
        >>> rf.evbmf(left @ right + noise).rank
        8
    """
    matrix = _real(matrix)
    if matrix.ndim != 2 or matrix.size == 0:
        raise RankfoldError(f"evbmf: shape {matrix.shape}; give a matrix with elements")
    if sigma2 is not None and not (sigma2 > 0.0 and math.isfinite(sigma2)):
        raise RankfoldError(f"evbmf: sigma2 {sigma2}; a noise variance is positive and finite")
    short, long = sorted(matrix.shape)
    wide = matrix if matrix.shape[0] == short else matrix.T
    with np.errstate(over="ignore", invalid="ignore"):
        gram, scale = linalg.gram(wide), 1.0
    if not _LEAST < np.trace(gram) < 1.0 / _LEAST:  # its squares are out of range
        scale = max(float(matrix.max()), -float(matrix.min()))
        if not math.isfinite(scale):
            raise RankfoldError("evbmf: the matrix has NaN or infinite values")
        if scale == 0.0:
            return EVBMF(0, 0.0, np.empty(0))
        gram = linalg.gram(linalg.over(wide, scale))
    noise = None if sigma2 is None else sigma2 / scale / scale
    scaled = from_squares(linalg.eigenvalues(gram), (short, long), noise)
    variance = scaled.sigma2 * scale * scale if sigma2 is None else sigma2
    return EVBMF(scaled.rank, variance, scaled.singular_values * scale)


def _real(matrix: Any) -> Array:
    kind = type(matrix).__name__
    try:
        matrix = linalg.taken(matrix)
        matrix = linalg.host(matrix) if hasattr(matrix, "dtype") else np.asarray(matrix)
        if np.iscomplexobj(matrix):
            raise TypeError("it is complex; its rank is not that of its real part")
        return np.asarray(matrix, dtype=np.float64)
    # Tensors without values (meta), without strides (sparse) and of dtypes that NumPy lacks.
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise RankfoldError(f"evbmf: {kind} is no matrix of real numbers: {told(error)}") from None


def from_squares(
    squares: Array,
    sides: tuple[int, int],
    sigma2: float | None = None,
    *,
    rounds: int = _ROUNDS,
) -> EVBMF:
    """EVBMF from squared singular values.

    Args:
        squares: all min(sides) of them, descending and not negative.
        sides: the (rows, columns) of the matrix, in any order.
        sigma2: the noise variance of an entry, where it is known.
        rounds: of narrowing the cells of the grid on which it is looked for.
    """
    short, long = sorted(sides)
    alpha = short / long
    mean_square = float(squares.sum()) / (short * long)
    if mean_square <= 0.0:
        return EVBMF(0, 0.0, np.empty(0))
    unit = np.maximum(squares / mean_square, _CLAMP * squares[0] / mean_square)
    threshold = detection_threshold(alpha)
    noise = _global_minimum(unit, long, alpha, rounds) if sigma2 is None else sigma2 / mean_square
    x = unit / (long * max(noise, _LEAST_NOISE))  # less would shrink no less
    rank = int(np.count_nonzero(x > threshold))
    kept = x[:rank]
    spread = 1.0 - (1.0 + alpha) / kept
    shrink = 0.5 * (spread + np.sqrt(np.maximum(spread**2 - 4.0 * alpha / kept**2, 0.0)))
    return EVBMF(rank, noise * mean_square, np.sqrt(squares[:rank]) * shrink)


@lru_cache(maxsize=1024)
def detection_threshold(alpha: float) -> float:
    """Threshold x̄ for a matrix of aspect ratio alpha = L/M in (0, 1]; nothing below it is kept."""
    from scipy.optimize import brentq

    def phi(z: float) -> float:
        return math.log1p(z) / z - 0.5

    root = brentq(lambda tau: phi(tau) + phi(tau / alpha), 1e-12, 10.0, xtol=1e-14, rtol=1e-14)
    return float((1.0 + root) * (1.0 + alpha / root))


def free_energy(log_noise: Array, unit: Array, long: int, alpha: float) -> Array:
    """Free energy Ω at each of several log σ², up to a constant.

    Args:
        log_noise: (n,).
        unit: squared singular values (L,), descending, of a matrix of unit mean square.
        long: M.
        alpha: L/M.
    """
    # With x_h = γ_h²/(M σ²): Ω = Σ_h (x_h − log x_h) + Σ_{x_h > x̄} ψ(x_h), where
    # ψ = log(1+τ) + α log(1+τ/α) − τ and τ(x) = ((x−1−α) + √((x−1−α)² − 4α))/2. The first sum
    # is Σγ²/(Mσ²) + L log σ² + const; only components above x̄ at the least σ² can be in the second.
    threshold = detection_threshold(alpha)
    omega = float(unit.sum()) / (long * np.exp(log_noise)) + len(unit) * log_noise
    most = int(np.count_nonzero(unit > threshold * long * math.exp(float(np.min(log_noise)))))
    x = unit[:most] / (long * np.exp(log_noise)[:, None])
    spread = np.maximum(x - (1.0 + alpha), 0.0)
    tau = 0.5 * (spread + np.sqrt(np.maximum(spread**2 - 4.0 * alpha, 0.0)))
    gain = np.log1p(tau) + alpha * np.log1p(tau / alpha) - tau
    total: Array = omega + np.where(x > threshold, gain, 0.0).sum(axis=1)
    return total


def _global_minimum(unit: Array, long: int, alpha: float, rounds: int) -> float:
    """Return the σ² in units of the mean square that minimises Ω between its bounds."""
    # Ω is smooth but for the σ² at which a component crosses the threshold, x_h = x̄, i.e.
    # σ² = γ_h²/(M·x̄): ψ is continuous there, its slope is not, so between two such `entries` Ω
    # may have a minimum of its own. Bounds of the minimiser (Nakajima et al. 2013), in units of the
    # mean square: max(γ²_{H+1}/(M·x̄), Σ_{h>H} γ_h²/(M(L−H))) ≤ σ² ≤ Σγ²/(LM) = 1 with
    # H = ⌈L/(1+α)⌉ − 1. The grid is even in log σ² together with (a share of) the entries; the
    # cells around its lowest points are then narrowed, since the lowest point of the grid need
    # not lie in the cell of the lowest minimum. Each round leaves a cell 2/(points−1) of its width.
    short = len(unit)
    threshold = detection_threshold(alpha)
    most = min(math.ceil(short / (1.0 + alpha)) - 1, short - 1)
    lower = max(float(unit[most]) / (long * threshold), float(unit[most:].mean()) / long)
    low, high = math.log(lower), 0.0
    if not low < high:
        return 1.0
    entries = np.log(unit[: most + 1] / (long * threshold))
    entries = entries[(entries > low) & (entries < high)]
    stride = max(1, len(entries) // _GRID)
    grid = np.unique(np.concatenate([np.linspace(low, high, _GRID), entries[::stride]]))
    values = free_energy(grid, unit, long, alpha)
    first = int(np.argmin(values))
    best, at_best = float(values[first]), float(grid[first])
    cells = np.argsort(values, kind="stable")[:_CELLS]
    low_ends = grid[np.maximum(cells - 1, 0)]
    high_ends = grid[np.minimum(cells + 1, len(grid) - 1)]
    for _ in range(rounds):  # all cells are narrowed at once
        points = np.linspace(low_ends, high_ends, _POINTS, axis=1)
        values = free_energy(points.ravel(), unit, long, alpha).reshape(points.shape)
        inner = np.argmin(values, axis=1)
        rows = np.arange(len(cells))
        cell = int(np.argmin(values[rows, inner]))
        if values[cell, inner[cell]] < best:
            best, at_best = float(values[cell, inner[cell]]), float(points[cell, inner[cell]])
        low_ends = points[rows, np.maximum(inner - 1, 0)]
        high_ends = points[rows, np.minimum(inner + 1, _POINTS - 1)]
    return math.exp(at_best)
