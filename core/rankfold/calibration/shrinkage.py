"""Shrinkage of second moments of few samples towards a multiple of the identity.

Oracle approximating shrinkage: Chen, Wiesel, Eldar and Hero, IEEE Trans. Signal Process. 58, 2010.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankfold import linalg
from rankfold.linalg import Array

_LEAST = 1e-12
"""Added in units of the mean variance, of a group and of the layer: keeps the moment of inputs that
never occur invertible, thousands of times above the rounding of float64."""
_TINY = 1e-300
"""Stands for a variance of 0 where it is divided by."""


@dataclass(frozen=True, eq=False)
class Shrinkage:
    """A moment S shrunk, Ŝ = kept · S + added · 1; both are (groups,), on the host."""

    kept: Array
    added: Array


def oas_shrinkage(moment: Array, samples: int) -> Shrinkage:
    """Return how a moment of few samples is shrunk towards the identity of the same trace.

    Args:
        moment: (groups, d, d) or the diagonal, (groups, d).
        samples: how many it is the mean of.
    """
    # Ŝ = (1 − ρ) S + ρ F with F = tr(S)/p · 1, per group of order p. The oracle ρ minimises
    # E‖Ŝ − Σ‖² for the true Σ; for Gaussian samples E‖S − Σ‖² = (tr Σ² + tr² Σ) / n. Putting Ŝ in
    # place of Σ and iterating ends in closed form (Chen et al., eq. 23),
    #     ρ = ((1 − 2/p) tr S² + tr² S) / ((n + 1 − 2/p) (tr S² − tr² S / p)),   at most 1:
    # the numerator is the scatter of S about Σ, `spread` is ‖S − F‖², how far S is from having
    # equal eigenvalues at all. The terms in 2/p are left out: they vanish for large p, and matter
    # less than how many samples n correlated positions count as. A matrix that is F already has
    # no spread, and any ρ gives F.
    # On a diagonal each variance is estimated from all n samples whatever p: ρ = 1 / (n + 1) adds
    # a single sample of the mean variance.
    size = moment.shape[1]
    if moment.ndim == 2:
        levels = linalg.host(moment.mean(axis=1))
        shares = np.full(len(moment), 1.0 / (1.0 + samples))
    else:
        traces = linalg.traces(moment).astype(np.float64)
        levels = traces / size
        squares = linalg.squares(moment)
        spread = squares - traces * traces / size
        scatter = (squares + traces * traces) / (samples + 1.0)
        shares = np.where(spread > 0.0, np.minimum(1.0, scatter / np.maximum(spread, _TINY)), 1.0)
        if size == 1:
            shares = np.zeros(len(moment))
    return Shrinkage(1.0 - shares, (shares + _LEAST) * levels + _LEAST * levels.max())


def shrunken(moment: Array, shrinkage: Shrinkage) -> Array:
    """Return a shrunk moment; of a diagonal, the diagonal."""
    kept, added = shrinkage.kept, shrinkage.added
    if linalg.is_single(moment):
        kept, added = linalg.single(kept), linalg.single(added)
    mixed = linalg.scaled(moment, kept, 0)
    if moment.ndim == 2:
        diagonal: Array = mixed + linalg.like(added[:, None], mixed)
        return diagonal
    return linalg.loaded(mixed, added)
