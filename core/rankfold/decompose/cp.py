"""CP (canonical polyadic) decomposition: pointwise, depthwise stages, pointwise.

"cp" fits a tensor (out, in, kh, kw): pointwise, vertical depthwise, horizontal depthwise, pointwise
(Lebedev et al., arXiv 1412.6553), with one depthwise stage per spatial axis in 1-d and 3-d. An axis
along which nothing happens (kernel 1, stride 1, no padding) needs no stage. "cp3" fits
(out, in, kh · kw): pointwise, one k×k depthwise stage, pointwise. Each axis's stage takes that
axis's kernel, stride, padding and dilation, and none elsewhere. How the factors are found is in
`cp_als`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rankfold import linalg
from rankfold.calibration.weighted_norm import Metric
from rankfold.decompose import cp_als as als
from rankfold.decompose.base import Factorization, Placement, RankTuple, Unfolding, decompose
from rankfold.decompose.cp_correction import correct
from rankfold.decompose.rank_grid import spaced
from rankfold.decompose.reduced_rank_regression import Regression
from rankfold.decompose.spectrum import Spectrum
from rankfold.decompose.stages import (
    along,
    cast,
    channel_unfoldings,
    check_ranks,
    pointwise,
    trivial,
)
from rankfold.decompose.tensor_algebra import Fit, balance, relative_sensitivity
from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, Convolution, ConvTranspose, Op, blank

if TYPE_CHECKING:
    from tensorly.cp_tensor import CPTensor

_COUNT = 6
"""Ranks for a budget to choose from: each takes a fit of its own."""
_LEAST_VARIANCE = 1e-8
"""Of the largest one, in whitening: the inverse of its root stays below 1e4."""


@dataclass(frozen=True)
class CP:
    """Pointwise, depthwise stages, pointwise; ranks are (rank,), per group.

    Attributes:
        name: "cp" or "cp3".
        separable: whether every spatial axis is a mode of its own.
        error_bound: where given, error-preserving correction lowers the norms of the rank-1 terms
            as far as this relative error allows.
    """

    name: str
    separable: bool
    multilinear_costs: ClassVar[bool] = True
    ranks_of_unfoldings: ClassVar[Mapping[str, int]] = {"output": 0, "input": 0, "weight": 0}
    error_bound: float | None = None

    def refuse(self, op: Op) -> str | None:
        """Refuse what is not a convolution."""
        if not isinstance(op, (Conv, ConvTranspose)):
            return f"{self.name} applies to convolutions, not to {type(op).__name__}; use svd"
        return None

    def max_ranks(self, op: Op) -> RankTuple:
        """Return a rank at which every kernel of that shape has an exact model."""
        assert isinstance(op, (Conv, ConvTranspose))
        return (als.full_rank(self._shape(op)),)

    def modes(self, op: Op, spectrum: Spectrum) -> tuple[Unfolding, ...]:
        """Return the output and the input unfolding."""
        return channel_unfoldings(spectrum)

    def ranks(self, unfolding_ranks: RankTuple) -> RankTuple:
        """Return the larger of the two: the number of rank-1 terms that both modes need."""
        return (max(unfolding_ranks),)

    def template(self, op: Op, ranks: RankTuple) -> Chain:
        """Return all stages without values."""
        assert isinstance(op, (Conv, ConvTranspose))
        limit = "rank-1 terms, with which the model is exact"
        (rank,) = check_ranks(self.name, op, ranks, self.max_ranks(op), (limit,))
        shape = self._shape(op)
        factors = [blank(op.groups, size, rank) for size in shape]
        return self._chain(op, factors)

    def error_at_ranks(
        self, op: Op, spectrum: Spectrum, multiple_of: int
    ) -> Sequence[tuple[RankTuple, float]]:
        """Return a few ranks with the squared errors of fits: they have no closed form."""
        rng = np.random.default_rng(0)
        most = min(self.max_ranks(op)[0], 2 * max(spectrum.tensor.shape[1:3]))
        return [
            ((rank,), self._fitted(op, rank, spectrum, rng)[1])
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
        """Fit by ridge-regularised alternating least squares, group by group.

        Under a metric the fit is that of the weight and that of the weight whitened by the moments
        of its channels, each with the last stage by regression; the better one is taken.
        """
        assert isinstance(op, (Conv, ConvTranspose))
        factors, squared = self._fitted(op, ranks[0], spectrum, rng)
        if spectrum.metric is None:
            error = math.sqrt(squared / spectrum.energy)
        else:
            error = spectrum.distance(_dense(factors).reshape(spectrum.rows.shape))
        balanced = _balanced(factors)
        placed = _scaled_as(balanced, spectrum.scale, placement)
        chain = cast(self._chain(op, placed), op)
        return Factorization(chain, error, sensitivity=_sensitivity(balanced, spectrum.energy))

    def _fitted(
        self, op: Op, rank: int, spectrum: Spectrum, rng: np.random.Generator
    ) -> tuple[list[Array], float]:
        """Return factors (groups, size, rank) and the squared error, under the metric if any."""
        assert isinstance(op, (Conv, ConvTranspose))
        shape = self._shape(op)
        metric = spectrum.metric
        plain = self._by_group(spectrum.tensor, shape, rank, rng)
        if metric is None:
            difference = _dense(plain).reshape(spectrum.rows.shape) - spectrum.rows
            return plain, linalg.inner(difference, difference)
        # ALS minimises plain squares. Multiplying the output mode by G½ and the input mode by C½
        # makes the metric plain, but for the correlation of inputs at different positions; back in
        # the original coordinates the input factor is C^-½ b, and the output factor, G^-½ a, is
        # replaced by the regression on the other stages under the full metric. That regression
        # also makes the plain fit a candidate: where few samples make C unreliable, or positions
        # are strongly correlated, it is the better one.
        root = linalg.eigh(metric.channels)
        scales = np.sqrt(np.maximum(root.values, _LEAST_VARIANCE * root.values[:, :1]))[:, None, :]
        scales = linalg.like(scales, root.vectors)
        half = (root.vectors * scales) @ root.vectors.mT
        back = (root.vectors / scales) @ root.vectors.mT
        whitened = spectrum.weighted_rows.reshape(spectrum.tensor.shape)
        whitened = linalg.einsum("goip,gij->gojp", whitened, half, optimize=True)
        fitted = self._by_group(whitened, shape, rank, rng)
        fitted[1] = linalg.product(back, fitted[1])
        candidates = (
            _with_regressed_output(spectrum, metric, factors)
            for factors in (plain, _balanced(fitted))
        )
        return min(candidates, key=lambda candidate: candidate[1])

    def _by_group(
        self, tensor: Array, shape: tuple[int, ...], rank: int, rng: np.random.Generator
    ) -> list[Array]:
        fits = [
            self._fit(tensor[group].reshape(shape), rank, rng) for group in range(tensor.shape[0])
        ]
        return [linalg.stacked(stack) for stack in zip(*(fit.factors for fit in fits), strict=True)]

    def _fit(self, tensor: Array, rank: int, rng: np.random.Generator) -> Fit:
        if linalg.inner(tensor, tensor) == 0.0:
            zeros = (linalg.like(np.zeros((size, rank)), tensor) for size in tensor.shape)
            return Fit(tuple(zeros), 0.0)
        fitted = als.fit(tensor, rank, rng)
        if self.error_bound is None:
            return fitted
        if fitted.error > self.error_bound:
            raise RankfoldError(
                f"{self.name}: rank {rank} reaches a relative error of {fitted.error:.3g}, above "
                f"the error_bound {self.error_bound}; use a higher rank or a larger bound"
            )
        return correct(tensor, fitted, self.error_bound)

    def _shape(self, op: Convolution) -> tuple[int, ...]:
        """Return the sizes of the modes of one group: out, in, then the depthwise stages."""
        out, into, *kernel = op.weight.shape
        if not self.separable:
            return out // op.groups, into, math.prod(kernel)
        live = (k for axis, k in enumerate(kernel) if not trivial(op, axis))
        return (out // op.groups, into, *live)

    def _chain(self, op: Convolution, factors: list[Array]) -> Chain:
        left, right, *depthwise = factors
        groups, _, rank = left.shape
        kernel = op.weight.shape[2:]
        if self.separable:
            stage_axes: list[tuple[int, ...]] = [
                (axis,) for axis in range(len(kernel)) if not trivial(op, axis)
            ]
        else:
            stage_axes = [tuple(range(len(kernel)))]
        stages: list[Op] = [pointwise(op, right.swapaxes(1, 2))]
        for axes, factor in zip(stage_axes, depthwise, strict=True):
            lengths = [k if axis in axes else 1 for axis, k in enumerate(kernel)]
            weight = factor.swapaxes(1, 2).reshape(groups * rank, 1, *lengths)
            stages.append(along(op, axes, weight, groups * rank))
        return (*stages, pointwise(op, left, op.bias))


CP4 = CP("cp", separable=True)
CP3 = CP("cp3", separable=False)


def cp(
    op: Op,
    rank: int,
    *,
    placement: Placement = "balanced",
    error_bound: float | None = None,
) -> Chain:
    """Decompose a `Conv` or a `ConvTranspose` by CP, one depthwise stage per spatial axis.

    Args:
        op: weight (out, in/groups, *kernel).
        rank: 1 to out·in·kh·kw / max(out, in, kh, kw), where the model is exact; per group.
        placement: "balanced" spreads the norm of each rank-1 term evenly over the stages,
            "classical" normalises all but the first stage.
        error_bound: a relative error ‖W − Ŵ‖ / ‖W‖ up to which the norms of the rank-1 terms are
            lowered (error-preserving correction, Phan et al., arXiv 2008.05441).

    Returns:
        (pointwise, one depthwise stage per axis, pointwise with the bias).

    Raises:
        RankfoldError: the op does not fit, the rank is out of range, the bound is not reached at
            this rank, or the weight is empty, all zero or not finite.

    Example:
        >>> op = rf.Conv(np.random.default_rng(0).standard_normal((16, 12, 3, 5)))
        >>> [stage.weight.shape for stage in rf.cp(op, 4)]
        [(4, 12, 1, 1), (4, 1, 3, 1), (4, 1, 1, 5), (16, 4, 1, 1)]
    """
    return decompose(_bounded(CP4, error_bound), op, (rank,), placement)


def cp3(
    op: Op,
    rank: int,
    *,
    placement: Placement = "balanced",
    error_bound: float | None = None,
) -> Chain:
    """Decompose a `Conv` or a `ConvTranspose` by CP, with a single k×k depthwise stage.

    Args:
        op: weight (out, in/groups, *kernel).
        rank: 1 to out·in·kh·kw / max(out, in, kh·kw), where the model is exact; per group.
        placement: "balanced" spreads the norm of each rank-1 term evenly over the stages,
            "classical" normalises all but the first stage.
        error_bound: a relative error ‖W − Ŵ‖ / ‖W‖ up to which the norms of the rank-1 terms are
            lowered.

    Returns:
        (pointwise, k×k depthwise, pointwise with the bias).

    Raises:
        RankfoldError: the op does not fit, the rank is out of range, the bound is not reached at
            this rank, or the weight is empty, all zero or not finite.

    Example:
        >>> op = rf.Conv(np.random.default_rng(0).standard_normal((16, 12, 3, 5)))
        >>> [stage.weight.shape for stage in rf.cp3(op, 4)]
        [(4, 12, 1, 1), (4, 1, 3, 5), (16, 4, 1, 1)]
    """
    return decompose(_bounded(CP3, error_bound), op, (rank,), placement)


def parafac(tensor: Array, rank: int) -> CPTensor:
    """Fit a CP model to a bare tensor, as `cp` does to a kernel.

    Args:
        tensor: (out, in, ...), at least two axes, finite and not all zero.
        rank: 1 to the product of all sizes but the largest.

    Returns:
        TensorLy's `CPTensor` with unit weights and balanced factors, in float64.

    Raises:
        RankfoldError: the tensor or the rank does not fit.
    """
    from tensorly.cp_tensor import CPTensor

    tensor = linalg.taken(tensor)
    if linalg.is_real(tensor):
        tensor = linalg.host(tensor)
    tensor = np.asarray(tensor, dtype=np.float64)
    if tensor.ndim < 2 or tensor.size == 0 or not np.isfinite(tensor).all() or not tensor.any():
        raise RankfoldError(
            f"a tensor of shape {tensor.shape}; it must have two axes or more, be finite and not "
            "all zero"
        )
    most = als.full_rank(tensor.shape)
    if not 1 <= rank <= most:
        raise RankfoldError(f"rank {rank}; use 1 to {most} for a tensor of shape {tensor.shape}")
    scale = float(np.abs(tensor).max())
    factors = als.fit(tensor / scale, rank, np.random.default_rng(0)).factors
    share = scale ** (1 / len(factors))
    return CPTensor((np.ones(rank), [factor * share for factor in factors]))


def _bounded(method: CP, error_bound: float | None) -> CP:
    if error_bound is not None and not 0.0 < error_bound < 1.0:
        raise RankfoldError(f"{method.name}: error_bound {error_bound}; use one between 0 and 1")
    return CP(method.name, method.separable, error_bound)


def _dense(factors: Sequence[Array]) -> Array:
    """Multiply factors (groups, size, rank) out to (groups, out, in · positions)."""
    product = factors[1]
    for factor in factors[2:]:
        product = (product[:, :, None, :] * factor[:, None, :, :]).reshape(
            len(product), -1, product.shape[2]
        )
    return factors[0] @ product.mT


def _with_regressed_output(
    spectrum: Spectrum, metric: Metric, factors: list[Array]
) -> tuple[list[Array], float]:
    """Return factors whose output factor is the best under the metric, and their squared error."""
    groups, _, rank = factors[0].shape
    eye = np.eye(rank)[None].repeat(groups, 0)
    stage = _dense([linalg.like(eye, factors[0]), *factors[1:]])
    stage = stage.reshape(groups, rank, -1)
    last = Regression.of(metric, spectrum.rows, stage).solution(rank)
    error = metric.squared(linalg.product(last, stage) - spectrum.rows)
    return [last, *factors[1:]], error


def _sensitivity(factors: list[Array], energy: float) -> float:
    """Return the relative sensitivity of the models of all groups together."""
    groups = range(factors[0].shape[0])
    return sum(relative_sensitivity([f[group] for f in factors], energy) for group in groups)


def _balanced(factors: list[Array]) -> list[Array]:
    groups = [balance([factor[g] for factor in factors]) for g in range(factors[0].shape[0])]
    return [linalg.stacked(stack) for stack in zip(*groups, strict=True)]


def _scaled_as(factors: list[Array], scale: float, placement: Placement) -> list[Array]:
    """Spread the scale over balanced factors (groups, size, rank).

    "classical" leaves all to that of the input channels, factor 1, which the input meets first.
    """
    if placement == "balanced":
        share = scale ** (1 / len(factors))
        return [factor * share for factor in factors]
    norms = [linalg.host(linalg.norms(factor, 1)) for factor in factors]
    total = np.prod(norms, axis=0) * scale
    placed = [
        factor / linalg.like(np.where(norm > 0.0, norm, 1.0), factor)
        for factor, norm in zip(factors, norms, strict=True)
    ]
    placed[1] = placed[1] * linalg.like(total, placed[1])
    return placed
