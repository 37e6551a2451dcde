"""Tucker-2: a convolution becomes pointwise, core convolution, pointwise.

W ≈ core ×_out U ×_in V with orthonormal U (out, r_out) and V (in, r_in) (Kim et al., arXiv
1511.06530). One factor starts as the leading singular vectors of its unfolding, and both are solved
for in turns by higher-order orthogonal iteration (HOOI). Stride, padding, dilation and groups stay
on the core; the bias goes to the last stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rankfold import linalg
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.calibration.weighted_norm import Metric
from rankfold.decompose.base import Factorization, Placement, RankTuple, Unfolding, decompose
from rankfold.decompose.hooi import hooi
from rankfold.decompose.rank_grid import spaced
from rankfold.decompose.reduced_rank_regression import (
    Regression,
    most_explained,
    tries_plain_basis,
)
from rankfold.decompose.spectrum import Spectrum
from rankfold.decompose.stages import (
    along,
    cast,
    channel_unfoldings,
    check_ranks,
    pointwise,
    refilled,
)
from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, Convolution, ConvTranspose, Op, blank

if TYPE_CHECKING:
    from tensorly.tucker_tensor import TuckerTensor

_COUNT = 12
"""Ranks per mode for a budget to choose from, hence up to 144 pairs."""


class Tucker2:
    """Three stages; ranks are (output rank, input rank), per group."""

    name = "tucker2"
    multilinear_costs: ClassVar[bool] = True
    ranks_of_unfoldings: ClassVar[Mapping[str, int]] = {
        "output": 0,
        "input": 1,
        "weight": 0,
        "weighted": 0,
    }

    def refuse(self, op: Op) -> str | None:
        """Refuse what is not a convolution."""
        if not isinstance(op, (Conv, ConvTranspose)):
            return f"tucker2 applies to convolutions, not to {type(op).__name__}; use svd"
        return None

    def surpassed(self, op: Op) -> str | None:
        """Return "svd" for kernels of one position, where two stages do what these three do."""
        return "svd" if isinstance(op, Conv) and math.prod(op.weight.shape[2:]) == 1 else None

    def max_ranks(self, op: Op) -> RankTuple:
        """Return the channels of a group, or the other side of the unfolding if smaller."""
        out, into, positions = self._sizes(op)
        return min(out, into * positions), min(into, out * positions)

    def modes(self, op: Op, spectrum: Spectrum) -> tuple[Unfolding, ...]:
        """Return the output and the input unfolding."""
        return channel_unfoldings(spectrum)

    def ranks(self, unfolding_ranks: RankTuple) -> RankTuple:
        """Return (output rank, input rank)."""
        return unfolding_ranks

    def template(self, op: Op, ranks: RankTuple) -> Chain:
        """Return (pointwise, core, pointwise) without values."""
        assert isinstance(op, (Conv, ConvTranspose))
        limits = ("output channels of a group", "input channels of a group")
        if op.groups == 1:
            limits = ("output channels", "input channels")
        r_out, r_in = check_ranks(self.name, op, ranks, self.max_ranks(op), limits)
        out, into, _ = self._sizes(op)
        core = blank(op.groups * r_out, r_in, *op.weight.shape[2:])
        return self._chain(op, blank(op.groups, r_in, into), core, blank(op.groups, out, r_out))

    def error_at_ranks(
        self, op: Op, spectrum: Spectrum, multiple_of: int
    ) -> Sequence[tuple[RankTuple, float]]:
        """Return ranks with their squared errors before any sweep of HOOI.

        A kernel of one position is a matrix: its rank is the lesser of the two, so only equal ranks
        are worth their cost, and what they explain adds up without further eigenvalues.
        """
        most_out, most_in = self.max_ranks(op)
        if spectrum.tensor.shape[3] == 1:
            return self._error_at_ranks_of_matrix(spectrum, min(most_out, most_in), multiple_of)
        outs = spaced(most_out, multiple_of, _COUNT)
        ins = spaced(most_in, multiple_of, _COUNT)
        # Input bases are nested, and so are the regressors z = Vᵀ x: the first r_in · positions
        # rows of Q = L⁻¹ E[z yᵀ] explain Qᵀ Q of the moment of the output. One regression at the
        # largest input rank, and eigenvalues of order `out` or less per input rank, give the errors
        # at all pairs.
        positions = spectrum.tensor.shape[3]
        regressed = ins
        whole: list[Array] = []
        if spectrum.metric is not None and len(ins) > 1:
            # At the largest input rank z stands for all of x, and the regression for the layer:
            # what its outputs are worth is known without the largest of the factors.
            regressed, whole = ins[:-1], [np.cumsum(spectrum.weighted_values.sum(axis=0))]
        explained = _explained(spectrum, self._priced_basis(spectrum, regressed[-1]))
        kept = [*_energies(explained, [r_in * positions for r_in in regressed]), *whole]
        total = spectrum.weight_of_all
        errors: list[tuple[RankTuple, float]] = []
        for r_in, sums in zip(ins, kept, strict=True):
            for r_out in outs:
                exact = (r_out, r_in) == (most_out, most_in)
                worth = float(sums[min(r_out, len(sums)) - 1])
                errors.append(((r_out, r_in), 0.0 if exact else max(0.0, total - worth)))
        return errors

    def _error_at_ranks_of_matrix(
        self, spectrum: Spectrum, most: int, multiple_of: int
    ) -> list[tuple[RankTuple, float]]:
        if spectrum.metric is None:
            worth = np.cumsum(channel_unfoldings(spectrum)[0].values.sum(axis=0))
        else:
            explained = _explained(spectrum, self._priced_basis(spectrum, most))
            worth = np.cumsum(linalg.host((explained * explained).sum(axis=(0, 2))))
        total = spectrum.weight_of_all
        return [
            ((rank, rank), 0.0 if rank == most else max(0.0, total - float(worth[rank - 1])))
            for rank in spaced(most, multiple_of, _COUNT)
        ]

    def decompose(
        self,
        op: Op,
        ranks: RankTuple,
        *,
        spectrum: Spectrum,
        placement: Placement,
        rng: np.random.Generator,
    ) -> Factorization:
        """Compute the factors by HOOI; the error is that of the projection.

        Under a metric: input channels by the plain or by the whitened channel mode, whichever
        serves better; core and last stage by reduced-rank regression on them.
        """
        assert isinstance(op, (Conv, ConvTranspose))
        r_out, r_in = ranks
        if spectrum.metric is not None:
            return self._regressed(op, ranks, spectrum, placement)
        core, left, right = hooi(spectrum, (r_out, r_in))
        error = spectrum.relative_error(linalg.inner(core, core))
        return Factorization(self._placed(op, right, core, left, spectrum.scale, placement), error)

    def _regressed(
        self, op: Convolution, ranks: RankTuple, spectrum: Spectrum, placement: Placement
    ) -> Factorization:
        # With the input basis V fixed, z = Vᵀ x at each position, and y ≈ U core z is a regression
        # of reduced rank (Izenman, J. Multivariate Anal. 5, 1975). For B = Σ_yz Σ_zz⁻¹, the one of
        # full rank, and any other B',
        #     E‖G½(y − B' z)‖² = E‖G½(y − B z)‖² + ‖G½ (B − B') Σ_zz½‖².
        # So G½ B' Σ_zz½ is the truncated SVD of G½ B Σ_zz½, whose Gram matrix is `part partᵀ`:
        # Σ_zz = L Lᵀ and B = Qᵀ L⁻¹ give B Σ_zz Bᵀ = Qᵀ Q. With its leading eigenvectors E,
        # U = G^-½ E and core = Eᵀ G½ B. Both steps are exact; only V is a choice, made among
        # `_input_bases`, in place of sweeps.
        metric = spectrum.metric
        assert metric is not None
        r_out, r_in = ranks
        right, regression, eigen = most_explained(
            self._regressions(spectrum, r_in),
            lambda candidate: float(candidate[2].values[:, :r_out].sum()),
        )
        core, last = _core_and_last(regression, eigen.leading(r_out), metric)
        positions = spectrum.tensor.shape[3]
        core = core.reshape(op.groups, r_out, r_in, positions)
        dense = linalg.einsum("goa,gabp,gib->goip", last, core, right, optimize=True)
        error = spectrum.distance(dense.reshape(spectrum.rows.shape))
        return Factorization(self._placed(op, right, core, last, spectrum.scale, placement), error)

    def with_later_stages(
        self, op: Op, chain: Chain, regression: Regression, metric: Metric
    ) -> Chain:
        """Return a chain with its first stage, and the regression of reduced rank on it."""
        first, core, last = chain
        regression = regression.weighted(metric)
        directions = _output_directions(regression)
        rank = len(core.weight) // op.groups
        factors = _core_and_last(regression, directions.leading(rank), metric)
        norms = [np.sqrt(linalg.inner(factor, factor)) for factor in factors]
        balance = float(np.sqrt(norms[1] / norms[0]))
        weights = (factors[0] * balance, factors[1] / balance)
        return first, *(
            refilled(stage, weight) for stage, weight in zip((core, last), weights, strict=True)
        )

    def _placed(
        self,
        op: Convolution,
        right: Array,
        core: Array,
        left: Array,
        scale: float,
        placement: Placement,
    ) -> Chain:
        factors = [right.mT, core, left]
        if placement == "classical":
            factors[1] = core * scale
        else:
            norms = np.sqrt([linalg.inner(factor, factor) for factor in factors])
            target = np.exp(np.mean(np.log(norms))) * scale ** (1 / 3)
            factors = [
                factor * float(target / norm) for factor, norm in zip(factors, norms, strict=True)
            ]
        first, core, last = factors
        core = core.reshape(-1, right.shape[2], *op.weight.shape[2:])
        return cast(self._chain(op, first, core, last), op)

    def _regressions(
        self, spectrum: Spectrum, r_in: int
    ) -> Iterator[tuple[Array, Regression, linalg.Eigen]]:
        """Yield bases of the input, regressions of G½ y on each, and what directions explain."""
        metric = spectrum.metric
        assert metric is not None
        moved, positions = spectrum.weighted_moved, spectrum.tensor.shape[3]
        for basis in self._input_bases(spectrum, r_in):
            regression = Regression.at_positions(metric, moved, basis, positions)
            yield basis, regression, _output_directions(regression)

    def _priced_basis(self, spectrum: Spectrum, rank: int) -> Array:
        """Return the one basis of the input that all ranks are priced on."""
        # Decomposing tries both bases, so that what is announced is never exceeded: pricing both
        # would double the cost of a plan, and changed no choice that was measured.
        if spectrum.metric is None:
            return spectrum.leading("input", rank)
        return self._whitened_basis(spectrum, spectrum.metric, rank)

    def _input_bases(self, spectrum: Spectrum, rank: int) -> Iterator[Array]:
        """Yield nested orthonormal bases (groups, in, rank) of the input channels."""
        metric = spectrum.metric
        if metric is None or tries_plain_basis(spectrum):
            yield spectrum.leading("input", rank)
        if metric is not None:
            yield self._whitened_basis(spectrum, metric, rank)

    @staticmethod
    def _whitened_basis(spectrum: Spectrum, metric: Metric, rank: int) -> Array:
        """Return the best basis if the positions of the kernel were independent."""
        groups, out, into, positions = spectrum.tensor.shape
        weighted = spectrum.weighted_rows.reshape(groups, out, into, positions)
        unfolded = weighted.swapaxes(1, 2).reshape(groups, into, -1)
        root = linalg.eigh(metric.channels)
        # With M the weighted input unfolding, H Hᵀ = C of the channels and positions taken for
        # independent, the best V minimises ‖(Mᵀ − K Vᵀ) H‖ over K: K Vᵀ H = Mᵀ H U Uᵀ with U the
        # leading eigenvectors of Hᵀ M Mᵀ H, so that V spans H^-ᵀ U. As Hᵀ M Mᵀ H U = U Λ, that is
        # the span of M Mᵀ H U = H^-ᵀ U Λ: no inverse is needed.
        half = linalg.scaled(root.vectors, np.sqrt(root.values), 2)
        if isinstance(metric.inputs, SeparableMoment):
            # Of wide patches M Mᵀ is made once, a third of the products of the lines below.
            square = linalg.gram(unfolded)
            turned = linalg.product(square, half)
            leading = linalg.approximate_leading(linalg.product(half.mT, turned), rank)
            return linalg.basis_of(linalg.product(turned, leading))
        turned = linalg.product(half.mT, unfolded)
        leading = linalg.approximate_leading(linalg.gram(turned), rank)
        return linalg.basis_of(linalg.product(unfolded @ turned.mT, leading))

    @staticmethod
    def _sizes(op: Op) -> tuple[int, int, int]:
        out, into = op.weight.shape[:2]
        return out // op.groups, into, math.prod(op.weight.shape[2:])

    @staticmethod
    def _chain(op: Convolution, first: Array, core: Array, last: Array) -> Chain:
        axes = tuple(range(op.weight.ndim - 2))
        return (
            pointwise(op, first),
            along(op, axes, core, op.groups),
            pointwise(op, last, op.bias),
        )


TUCKER2 = Tucker2()


def tucker2(op: Op, ranks: tuple[int, int], *, placement: Placement = "balanced") -> Chain:
    """Decompose a `Conv` or a `ConvTranspose` by Tucker-2.

    Args:
        op: weight (out, in/groups, *kernel).
        ranks: (output rank, input rank), per group: at most out/groups and in/groups.
        placement: "balanced" gives the stages equal norms, "classical" keeps the pointwise ones
            orthonormal.

    Returns:
        (pointwise `Conv`, core of the class of `op`, pointwise `Conv` with the bias).

    Raises:
        RankfoldError: the op does not fit, a rank is out of range, or the weight is empty, all
            zero or not finite.

    Example:
        >>> op = rf.Conv(np.random.default_rng(0).standard_normal((64, 48, 3, 5)))
        >>> [stage.weight.shape for stage in rf.tucker2(op, (16, 12))]
        [(12, 48, 1, 1), (16, 12, 3, 5), (64, 16, 1, 1)]
    """
    return decompose(TUCKER2, op, ranks, placement)


def partial_tucker2(tensor: Array, ranks: tuple[int, int]) -> TuckerTensor:
    """Decompose a bare tensor along its first two axes by Tucker-2.

    Args:
        tensor: (out, in, *kernel), finite and not all zero.
        ranks: (output rank, input rank).

    Returns:
        TensorLy's `TuckerTensor` with the core (r_out, r_in, *kernel) and the factors (out, r_out)
        and (in, r_in), in float64. TensorLy counts them as modes 0 and 1.

    Raises:
        RankfoldError: a rank is out of range, or the tensor is empty, all zero or not finite.
    """
    from tensorly.tucker_tensor import TuckerTensor

    tensor = linalg.taken(tensor)
    if tensor.ndim < 3:
        raise RankfoldError(f"a tensor of shape {tensor.shape}; the layout is (out, in, *kernel)")
    op = Conv(weight=tensor.reshape(*tensor.shape[:2], -1))
    first, core, last = decompose(TUCKER2, op, ranks, "classical")
    shape = (*core.weight.shape[:2], *tensor.shape[2:])
    factors = [last.weight[:, :, 0], first.weight[:, :, 0].T]
    kernel = [np.eye(size) for size in tensor.shape[2:]]
    return TuckerTensor((core.weight.reshape(shape), [*factors, *kernel]))


def _explained(spectrum: Spectrum, basis: Array) -> Array:
    """Return Q, (groups, r_in · positions, out): a basis of the input explains Qᵀ Q."""
    metric = spectrum.metric
    groups, out, _, positions = spectrum.tensor.shape
    if metric is not None:
        moved = spectrum.weighted_moved
        return Regression.at_positions(metric, moved, basis, positions).explained
    reduced = (basis.mT @ spectrum.input_unfolding).reshape(groups, -1, out, positions)
    return reduced.swapaxes(2, 3).reshape(groups, -1, out)


def _energies(rows: Array, counts: Sequence[int]) -> Iterator[Array]:
    """Yield the cumulated squared singular values of the first rows, for each count of them.

    Args:
        rows: (groups, m, n).
        counts: ascending.
    """
    # Q Qᵀ of fewer rows is a block of that of more, and Qᵀ Q the sum over blocks of rows: between
    # the counts only what is new is multiplied.
    _, most, size = rows.shape
    few = rows[:, : min(size, most)]
    beside = few @ few.mT
    summed: Array | float = 0.0
    start = 0
    for count in counts:
        if count < size:
            gram = beside[:, :count, :count]
        else:
            added = rows[:, start:count]
            summed, start = summed + added.mT @ added, count
            gram = summed
        yield np.cumsum(linalg.eigenvalues(gram).sum(axis=0))


def _output_directions(regression: Regression) -> linalg.Eigen:
    """Return the eigenpairs of Qᵀ Q, what a regression explains of the outputs."""
    return linalg.eigh(linalg.gram(regression.explained.mT))


def _core_and_last(regression: Regression, left: Array, metric: Metric) -> tuple[Array, Array]:
    """Return Eᵀ G½ B (groups, r_out, r_in · positions) and G^-½ E (groups, out, r_out).

    Args:
        regression: of G½ y.
        left: E.
        metric: of the layer.
    """
    core = regression.towards(left).solution(regression.explained.shape[1])
    return core, metric.unweight_outputs(left)
