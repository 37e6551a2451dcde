"""Interpolative factors: chains with the identity in r rows of a stage, which it need not store.

A chain of rank r ends with A (m, r) on what V (r, ...) gives. With the row interpolative
decomposition A = P [1; T] A_J it is the same map as P [1; T] on A_J V: r outputs are passed on, and
the chain has r (m − r) + r n parameters and multiply-accumulates in place of r (m + n), never more
than the dense layer (Zhao et al., Pivoting Factorization, ICML 2025). The columns of the first
stage of a Tucker-2 chain go the same way.

Nothing is lost or gained in accuracy at equal ranks: the weight is that of the method underneath,
in whatever norm this found it, and so are its errors. The stage that takes A_J up has the scale of
the weight itself, whatever the placement is, as an identity cannot be scaled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import numpy as np

from rankfold import linalg
from rankfold.calibration.weighted_norm import Metric
from rankfold.decompose.base import (
    Decomposition,
    EstimatesErrors,
    Factorization,
    NamesBetterMethod,
    Placement,
    RanksUnfoldings,
    RankTuple,
    RegressesLaterStages,
    Unfolding,
)
from rankfold.decompose.channel_svd import CHANNEL_SVD
from rankfold.decompose.reduced_rank_regression import Regression
from rankfold.decompose.spectrum import Spectrum
from rankfold.decompose.svd import SVD
from rankfold.decompose.tucker2 import TUCKER2
from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, Embedding, Linear, Op, Pivots, pivots_of
from rankfold.ops.interpolation import (
    pivots_of_chain,
    with_stored_weight,
    without_pivots,
)

End = Literal["first", "last"]


class _Method(
    Decomposition,
    EstimatesErrors,
    NamesBetterMethod,
    RanksUnfoldings,
    RegressesLaterStages,
    Protocol,
):
    """The protocols of the method underneath."""


@dataclass(frozen=True)
class Interpolative:
    """The chains of a method with interpolative outer stages; ranks are those of the method.

    Attributes:
        method: gives the chains.
        ends: the stages that are made interpolative.
        multilinear_costs: as `CountsByFormula` has it, but for the squares of ranks that are saved.
    """

    method: _Method
    ends: tuple[End, ...] = ("last",)
    multilinear_costs: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name of the method, with "_id" behind it."""
        return f"{self.method.name}_id"

    @property
    def interpolates(self) -> str:
        """Name of the method whose errors these are; see `Interpolates`."""
        return self.method.name

    @property
    def ranks_of_unfoldings(self) -> Mapping[str, int]:
        """Ranks of unfoldings, as the method has them; see `RanksUnfoldings`."""
        return self.method.ranks_of_unfoldings

    def refuse(self, op: Op) -> str | None:
        """Refuse what the method refuses, and layers with groups."""
        reason = self.method.refuse(op)
        if reason is None and op.groups > 1:
            # A stack of layers is written with groups, too: each would have pivots of its own.
            reason = f"{self.name} applies to layers without groups; use {self.method.name}"
        return reason

    def surpassed(self, op: Op) -> str | None:
        """Return what surpasses the method, interpolative in its turn."""
        better = self.method.surpassed(op)
        return None if better is None else f"{better}_id"

    def max_ranks(self, op: Op) -> RankTuple:
        """Return the ranks at which the chain is exact."""
        return self.method.max_ranks(op)

    def modes(self, op: Op, spectrum: Spectrum) -> tuple[Unfolding, ...]:
        """Return the unfoldings of the method."""
        return self.method.modes(op, spectrum)

    def ranks(self, unfolding_ranks: RankTuple) -> RankTuple:
        """Return the ranks of the method."""
        return self.method.ranks(unfolding_ranks)

    def template(self, op: Op, ranks: RankTuple) -> Chain:
        """Return the chain without values; its pivots are the first channels."""
        stages = list(self.method.template(op, ranks))
        for end in self.ends:
            index = 0 if end == "first" else -1
            stages[index] = _blank_interpolation(stages[index])
        return tuple(stages)

    def error_at_ranks(
        self, op: Op, spectrum: Spectrum, multiple_of: int
    ) -> Iterable[tuple[RankTuple, float | None]]:
        """Return the ranks and errors of the method."""
        return self.method.error_at_ranks(op, spectrum, multiple_of)

    def decompose(
        self,
        op: Op,
        ranks: RankTuple,
        *,
        spectrum: Spectrum,
        placement: Placement,
        rng: np.random.Generator,
    ) -> Factorization:
        """Decompose by the method, and interpolate."""
        factored = self.method.decompose(op, ranks, spectrum=spectrum, placement=placement, rng=rng)
        return replace(factored, chain=interpolated(factored.chain, self.ends))

    def with_later_stages(
        self, op: Op, chain: Chain, regression: Regression, metric: Metric
    ) -> Chain:
        """Return the later stages of the method, on a chain without pivots."""
        return self.method.with_later_stages(op, chain, regression, metric)


SVD_ID = Interpolative(SVD)
CHANNEL_SVD_ID = Interpolative(CHANNEL_SVD)
TUCKER2_ID = Interpolative(TUCKER2, ("last", "first"))


def interpolated(chain: Chain, ends: Sequence[End], pivots: Sequence[Pivots] = ()) -> Chain:
    """Return a chain of the same weight with interpolative stages at its ends.

    Args:
        chain: of two stages or more. Its last stage is a matrix without geometry, on one side of
            the rest; so is the first where it is asked for.
        ends: which stages.
        pivots: to use, in the order of the stages; none to choose them such that no entry of an
            interpolative stage is above 2 in magnitude.

    Raises:
        RankfoldError: the pivots do not fit the chain.
    """
    stages = list(without_pivots(chain))
    known = list(pivots)
    if known and len(known) != len(ends):
        raise RankfoldError(f"{len(known)} lists of pivots for {len(ends)} interpolative stages")
    if "first" in ends:
        first, second = stages[0], stages[1]
        stage, factor = _interpolation(first, "first", known[0] if known else None)
        stages[0], stages[1] = stage, _times(second, factor, axis=1)
    if "last" in ends:
        stage, factor = _interpolation(stages[-1], "last", known[-1] if known else None)
        axis = 1 if isinstance(stages[-2], Embedding) else 0
        stages[-1], stages[-2] = stage, _times(stages[-2], factor, axis)
    return tuple(stages)


def interpolated_like(chain: Chain, like: Chain) -> Chain:
    """Return a chain with interpolative stages where another one has them."""
    ends = _interpolative_ends(like)
    return interpolated(chain, ends) if ends and not pivots_of_chain(chain) else chain


def with_pivots(chain: Chain, pivots: Sequence[Pivots]) -> Chain:
    """Return a chain of the same weight with other pivots in its interpolative stages.

    Raises:
        RankfoldError: they do not fit the chain.
    """
    if pivots_of_chain(chain) == tuple(pivots):
        return chain
    return interpolated(chain, _interpolative_ends(chain), pivots)


def template_with_pivots(chain: Chain, pivots: Sequence[Pivots]) -> Chain:
    """Return a template with given pivots in its interpolative stages.

    Raises:
        RankfoldError: they do not fit the stages.
    """
    remaining = list(pivots)
    if len(remaining) != len(pivots_of_chain(chain)):
        raise RankfoldError(
            f"{len(remaining)} lists of pivots for {len(pivots_of_chain(chain))} interpolative "
            "stages"
        )
    return tuple(
        replace(stage, pivots=remaining.pop(0))
        if isinstance(stage, (Linear, Conv)) and stage.pivots is not None
        else stage
        for stage in chain
    )


def _interpolative_ends(chain: Chain) -> list[End]:
    ends: list[End] = []
    if pivots_of(chain[0]) is not None:
        ends.append("first")
    if pivots_of(chain[-1]) is not None:
        ends.append("last")
    return ends


def _blank_interpolation(stage: Op) -> Op:
    assert isinstance(stage, (Linear, Conv))
    count = min(stage.weight.shape[:2])
    if stage.weight.size == 1:  # of no axis with a stride, so that it cannot be told to be blank
        stage = replace(stage, weight=np.ones_like(stage.weight))
    return replace(stage, pivots=tuple(range(count)))


def _interpolation(stage: Op, end: End, pivots: Pivots | None) -> tuple[Op, Array]:
    """Split a stage into an interpolative one and the (r, r) factor that goes to its neighbour.

    Args:
        stage: A (m, r) with m ≥ r at the last end, Aᵀ at the first.
        end: which of the two.
        pivots: J; None to choose them.

    Returns:
        P [1; T], or its transpose, and A_J.
    """
    assert isinstance(stage, (Linear, Conv))
    tall, dtype = end == "last", stage.weight.dtype
    host = np.asarray(linalg.host(stage.weight), dtype=np.float64)
    matrix = host.reshape(host.shape[:2]) if tall else host.reshape(host.shape[:2]).T
    if pivots is None:
        pivots, stored = linalg.row_interpolation(matrix)
    else:
        _check_fit(pivots, matrix)
        try:
            stored = linalg.coefficients(matrix, pivots)
        except np.linalg.LinAlgError:
            raise RankfoldError(
                "the planned pivots do not fit these weights, whose rows there are dependent; make "
                "a plan for them"
            ) from None
    whole = with_stored_weight(stored if tall else stored.T, pivots, tall=tall)
    weight = linalg.contiguous(
        linalg.cast(linalg.like(whole.reshape(host.shape), stage.weight), dtype)
    )
    return replace(stage, weight=weight, pivots=pivots), matrix[list(pivots)]


def _check_fit(pivots: Pivots, matrix: Array) -> None:
    rows, rank = matrix.shape
    if len(set(pivots)) != rank or not all(0 <= row < rows for row in pivots):
        raise RankfoldError(
            f"{len(pivots)} pivots do not fit a stage of {rows} by {rank} channels; a plan without "
            "pivots chooses new ones"
        )


def _times(stage: Op, factor: Array, axis: int) -> Op:
    """Multiply a stage by a matrix along one axis of its weight, (out, in, *kernel).

    Args:
        stage: any.
        factor: (r, r), whose columns meet the axis.
        axis: 0 for output channels, 1 for input channels and for columns of a table.
    """
    weight = linalg.double(stage.weight)
    moved = weight if axis == 0 else weight.swapaxes(0, 1)
    product = linalg.like(factor, weight) @ moved.reshape(moved.shape[0], -1)
    product = product.reshape(-1, *moved.shape[1:])
    product = product if axis == 0 else product.swapaxes(0, 1)
    return replace(stage, weight=linalg.contiguous(linalg.cast(product, stage.weight.dtype)))
