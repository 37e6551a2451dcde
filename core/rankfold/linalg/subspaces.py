"""Gram matrices, eigenpairs, leading subspaces and least squares of stacks of matrices.

Everything here runs where its arrays live: on NumPy arrays with NumPy, on arrays of any other
library of the array API standard (a PyTorch tensor on an accelerator) with that library. What is
small and looked at by policies, eigenvalues and errors, comes back to the host.

Matrices come in stacks (the groups of a convolution). Singular values are read off Gram matrices in
float64, which is good to 1e-8 of the largest, and because weights are *projected* on the
orthonormal factors, W ≈ U(UᵀW), and never divided by a singular value, a decomposition at full rank
is exact in spite of the squared condition number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rankfold.linalg.arrays import (
    cast,
    double,
    host,
    like,
    namespace,
    norms,
    read_only,
    single,
)
from rankfold.linalg.triangular import factor_by_library

if TYPE_CHECKING:
    from rankfold.linalg.arrays import Array

LARGE = 1024
"""From this order on BLAS makes good use of more than one thread."""
_SAMPLED = 512
"""Smaller side of a matrix from which its subspaces are sampled: an eigendecomposition of a smaller
order costs little."""
_FEW = 0.15
"""Of the order: at more vectors than these, the products with them cost what a Gram matrix does."""
_OVERSAMPLED = 0.15
"""Further columns of a sample, of the rank: they take in what leaks from the values next below."""
_POWER_STEPS = 3
"""Each damps what is left of smaller singular values by the square of their ratio to the wanted."""
_LEAF = 48
"""Order below which halves save nothing: 32 to 64 were equal at orders of 96 to 512."""
_RECURSIVE = 96
"""Order of a system from which the inverse factor by halves is faster than LAPACK's solver, for as
many right-hand sides: 1.1 times at 96, 2.0 at 256, 2.6 at 512."""
_RECURSIVE_FOR_FEW = 384
"""The same for three right-hand sides: 1.1 times at 384, 1.4 at 512, but 0.6 at 128."""
_WELL_CONDITIONED = 1e-4
"""Relative ridge from which the inverse factor is as good as substitution: it bounds the condition
of a system by its order over the ridge, and errors grow in proportion to that."""
_OFF = 1e-4
"""Deviation of Qᵀ Q from the identity, in float32, at which CholeskyQR2 counts as failed."""


@dataclass(frozen=True, eq=False)
class Eigen:
    """Eigenpairs of a stack of Gram matrices.

    Attributes:
        values: (groups, k), descending and not negative: squared singular values; on the host.
        vectors: (groups, n, k), the eigenvectors in columns; k is n, or less where the rest of the
            values is zero.
    """

    values: Array
    vectors: Array

    def __post_init__(self) -> None:
        for name in ("values", "vectors"):  # all decompositions of a layer share them
            object.__setattr__(self, name, read_only(getattr(self, name)))

    def leading(self, rank: int) -> Array:
        """Return the first `rank` eigenvectors of each group, (groups, n, rank)."""
        return self.vectors[..., :rank]

    def first(self, rank: int) -> Eigen:
        """Return the first `rank` eigenpairs of each group."""
        return Eigen(self.values[..., :rank], self.leading(rank))


def gram(matrices: Array) -> Array:
    """Return A Aᵀ of each matrix of a stack, in float64: (groups, n, m) to (groups, n, n)."""
    return double(matrices @ matrices.mT)


def eigh(grams: Array) -> Eigen:
    """Return all eigenpairs of a stack of positive semi-definite matrices, descending."""
    xp = namespace(grams)
    values, vectors = xp.linalg.eigh(grams)
    descending = host(values)[..., ::-1]
    return Eigen(np.maximum(descending, 0.0), xp.flip(vectors, axis=-1))


def eigenvalues(grams: Array) -> Array:
    """Return the eigenvalues alone, descending, on the host, in a third of the time of `eigh`."""
    values = host(namespace(grams).linalg.eigvalsh(grams))
    return np.maximum(values[..., ::-1], 0.0)


def smaller_gram(matrices: Array) -> Array:
    """Return A Aᵀ of each matrix of a stack, or Aᵀ A where that is smaller, in float64."""
    return gram(matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT)


def left_eigen(matrices: Array, grams: Array | None = None) -> Eigen:
    """Return the eigenpairs of Gram matrices A Aᵀ, from those of Aᵀ A where these are smaller.

    Args:
        matrices: (groups, n, m).
        grams: `smaller_gram` of them, where it is at hand.

    Returns:
        min(n, m) pairs. Of a tall matrix the vectors are an orthonormal basis of A V, found by QR:
        nothing is divided by a singular value.
    """
    if grams is None:
        grams = smaller_gram(matrices)
    if matrices.shape[-2] <= matrices.shape[-1]:
        return eigh(grams)
    return _of_left(matrices, eigh(grams))


def _of_left(matrices: Array, right: Eigen) -> Eigen:
    """Turn eigenpairs of Aᵀ A into those of A Aᵀ."""
    basis, _ = namespace(matrices).linalg.qr(double(matrices) @ right.vectors)
    return Eigen(right.values, basis)


def leading(matrices: Array, rank: int, grams: Array | None = None) -> Array:
    """Return an orthonormal basis (groups, n, rank) of the leading left singular subspaces.

    Args:
        matrices: (groups, n, m).
        rank: 1 to n.
        grams: `smaller_gram` of them, where it is at hand.
    """
    return leading_pairs(matrices, rank, grams).vectors


def leading_pairs(matrices: Array, rank: int, grams: Array | None = None) -> Eigen:
    """Return leading left singular vectors with the squared singular values.

    Args:
        matrices: (groups, n, m).
        rank: 1 to n.
        grams: `smaller_gram` of them, where it is at hand.

    Returns:
        Values (groups, rank) and vectors (groups, n, rank).
    """
    if rank > matrices.shape[-1]:
        return eigh(gram(matrices)).first(rank)
    if grams is None:
        grams = smaller_gram(matrices)
    if few_pay(matrices, rank):
        pairs = [_few_pairs(matrix, rank) for matrix in grams]
        eigen = Eigen(*(np.stack(parts) for parts in zip(*pairs, strict=True)))
    else:
        eigen = eigh(grams).first(rank)
    return eigen if matrices.shape[-2] <= matrices.shape[-1] else _of_left(matrices, eigen)


def few_pay(matrices: Array, rank: int) -> bool:
    """Return whether that many singular vectors are computed without the others.

    It depends on shape, rank and library alone. If it depended on which eigenpairs are cached, so
    would the last bits of a result.
    """
    size = min(matrices.shape[-2:])
    return isinstance(matrices, np.ndarray) and bool(size >= LARGE and rank <= _FEW * size)


def _few_pairs(matrix: Array, rank: int) -> tuple[Array, Array]:
    """Return the leading eigenpairs alone, without the time that the others would take."""
    from scipy.linalg import eigh as partial

    size = len(matrix)
    values, vectors = partial(matrix, driver="evr", subset_by_index=[size - rank, size - 1])
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]


def approximate_leading(grams: Array, rank: int) -> Array:
    """Return leading eigenvectors (groups, n, rank) of Gram matrices, to the rounding of float32.

    For bases on which a regression follows, that is exact for any basis: a basis that is off by
    1e-6 explains less by the square of that.

    Args:
        grams: (groups, n, n), positive semi-definite.
        rank: 1 to n.
    """
    if not isinstance(grams, np.ndarray) or grams.shape[-1] < _SAMPLED:
        return eigh(grams).leading(rank)
    # A third of the time of all eigenpairs in float64, at a quarter of the order.
    return np.stack([_few_pairs(single(matrix), rank)[1] for matrix in grams])


def few(rank: int, size: int) -> bool:
    """Return whether a subspace of that rank is sampled, at a fraction of the cost."""
    return size >= _SAMPLED and rank <= _FEW * size


def sampled(matrices: Array, rank: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return orthonormal A (groups, n, rank), and B, of nearly the best approximation A B.

    Power iteration on a random start with a sixth more columns (Halko, Martinsson and Tropp, SIAM
    Review 53, 2011), in float32, then the best subspace of what it spans. The error is about 0.5 %
    above the least for spectra that decay, 1.1 % for noise, where it is worst.

    Args:
        matrices: (groups, n, m).
        rank: less than min(n, m).
        rng: draws the start.
    """
    a = single(matrices)
    width = min(a.shape[-2], a.shape[-1], rank + max(8, round(_OVERSAMPLED * rank)))
    start = rng.standard_normal((a.shape[0], a.shape[-1], width), dtype=np.float32)
    basis = a @ like(start, a)
    # Columns of (A Aᵀ)^q A Ω lean towards singular vector i by σ_i^(2q+1). They are orthonormalised
    # before each step, or those of small σ_i would drown in the rounding of the largest; one round
    # suffices there, as only the span matters.
    for _ in range(_POWER_STEPS):
        basis = a @ (a.mT @ orthonormal(basis, rounds=1))
    basis = orthonormal(basis)
    inside = basis.mT @ a
    within = eigh(gram(inside)).leading(rank)
    return double(basis) @ within, double(within.mT) @ double(inside)


def orthonormal(columns: Array, rounds: int = 2) -> Array:
    """Return an orthonormal basis of the span of columns (groups, n, k), k well below n.

    By the Cholesky factor of their Gram matrix, twice (CholeskyQR2: Yamamoto et al., ETNA 44,
    2015); by QR where these are nearly dependent.

    Args:
        columns: (groups, n, k).
        rounds: 1 for columns that are no more than well conditioned.
    """
    xp = namespace(columns)
    factor = np.linalg.cholesky if isinstance(columns, np.ndarray) else factor_by_library
    lengths = norms(columns, -2)
    if not bool((lengths > 0.0).all()):
        return basis_of(columns)
    # AᵀA = L Lᵀ makes A L^-ᵀ orthonormal, up to the squared condition number times rounding. The
    # second round starts from condition number near 1, and so reaches rounding itself.
    basis = columns / lengths
    for _ in range(rounds):
        try:
            lower = factor(gram(basis.mT))
        except np.linalg.LinAlgError:
            return basis_of(columns)
        basis = basis @ cast(xp.linalg.inv(lower).mT, basis.dtype)
    if rounds == 1:
        return basis
    off = abs(gram(basis.mT) - like(np.eye(basis.shape[-1]), basis)).max()
    return basis if float(off) < _OFF else basis_of(columns)


def basis_of(columns: Array) -> Array:
    """Return the orthonormal Q (groups, n, k) of the QR decomposition of columns."""
    basis: Array = namespace(columns).linalg.qr(columns)[0]
    return basis


def ridge_solve(system: Array, right: Array, ridge: float) -> Array:
    """Solve X (S + ridge·tr(S)/n·1) = R for X, with a positive semi-definite S.

    Args:
        system: S, (n, n).
        right: R, (m, n).
        ridge: relative to the mean eigenvalue of S.
    """
    xp = namespace(system)
    n = system.shape[0]
    plain = isinstance(system, np.ndarray)
    level = float(system.trace() if plain else xp.linalg.trace(system)) / n
    if level <= 0.0:
        return right * 0.0
    if plain:  # sweeps over small tensors take as long as the calls they make
        loaded = np.add(system, 0.0, order="C")
        loaded.reshape(-1)[:: n + 1] += ridge * level
    else:
        loaded = system + cast((ridge * level) * like(np.eye(n), system), system.dtype)
    # not SciPy's Cholesky: its BLAS has a thread pool of its own, and the two pools spin
    by_halves = n >= _RECURSIVE and (n >= _RECURSIVE_FOR_FEW or 2 * len(right) >= n)
    if plain and by_halves and ridge >= _WELL_CONDITIONED:
        try:
            inverse = _inverse_factor(loaded)
        except np.linalg.LinAlgError:
            pass
        else:
            return (right @ inverse.mT) @ inverse
    solution: Array = xp.linalg.solve(loaded, right.mT).mT
    return solution


def _inverse_factor(matrix: Array) -> Array:
    """Return L⁻¹ of a positive definite L Lᵀ by halves, so that nearly all is products.

    Args:
        matrix: (n, n).

    Raises:
        numpy.linalg.LinAlgError: it is not positive definite.
    """
    # ⎡A  ·⎤ = ⎡P  0⎤ ⎡Pᵀ Bᵀ⎤  with  B = C P^-ᵀ,  Q Qᵀ = D − B Bᵀ,  and  ⎡   P⁻¹      0 ⎤
    # ⎣C  D⎦   ⎣B  Q⎦ ⎣0  Qᵀ⎦                            L⁻¹ =          ⎣−Q⁻¹BP⁻¹  Q⁻¹⎦.
    size = len(matrix)
    if size <= _LEAF:
        leaf: Array = np.linalg.inv(np.linalg.cholesky(matrix))
        return leaf
    half = size // 2
    upper = _inverse_factor(matrix[:half, :half])
    below = matrix[half:, :half] @ upper.mT
    lower = _inverse_factor(matrix[half:, half:] - below @ below.mT)
    inverse = np.zeros_like(matrix)
    inverse[:half, :half] = upper
    inverse[half:, half:] = lower
    np.matmul(lower, below @ upper, out=inverse[half:, :half])
    np.negative(inverse[half:, :half], out=inverse[half:, :half])
    return inverse
