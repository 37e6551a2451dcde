"""Protocols of a decomposition, which turns an op into a chain of ops at given ranks.

They are structural types: nothing is inherited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from rankfold.calibration.weighted_norm import Metric
from rankfold.decompose.reduced_rank_regression import Regression
from rankfold.decompose.spectrum import Spectrum
from rankfold.errors import RankfoldError, Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, ConvTranspose, Embedding, Linear, Op

RankTuple: TypeAlias = tuple[int, ...]
Placement: TypeAlias = Literal["balanced", "classical"]


class Unfolding:
    """One matrix of a layer whose rank a policy chooses.

    Args:
        values: the squared singular values, or a function that returns them: it is called only
            where a policy reads them, so that one which reads shapes alone costs no
            eigendecomposition.
        sides: the (rows, columns) of the matrix of one group.
        channels: the channel count that a rank given as a share refers to.
        scale: what the weight was divided by.
        name: of the unfolding in the records of a plan; "" for one that is not recorded.

    Attributes:
        sides: the (rows, columns) of the matrix of one group.
        channels: the channel count that a rank given as a share refers to.
        scale: what the weight was divided by.
        name: of the unfolding in the records of a plan.
    """

    def __init__(
        self,
        values: Array | Callable[[], Array],
        sides: tuple[int, int],
        channels: int,
        scale: float,
        name: str = "",
    ) -> None:
        self._values = values
        self.sides = sides
        self.channels = channels
        self.scale = scale
        self.name = name

    @property
    def values(self) -> Array:
        """Squared singular values of the weight over `scale`.

        (groups, n), descending, where n is the smaller side of the matrix.
        """
        return self._values() if callable(self._values) else self._values


@dataclass(frozen=True, eq=False)
class Factorization:
    """A decomposed layer.

    Attributes:
        chain: the ops that take the place of the layer.
        error: ‖W − Ŵ‖ / ‖W‖ of the weight.
        remark: a note on how the factors were computed; "" for none.
        sensitivity: of a CP model, the expected squared relative change of the weight per unit
            variance of noise relative to the factors; None for other models.
    """

    chain: Chain
    error: float
    remark: str = ""
    sensitivity: float | None = None


class Decomposition(Protocol):
    """One way to turn an op into a chain of ops.

    `EstimatesErrors`, `NamesBetterMethod`, `CountsByFormula`, `RegressesLaterStages` and
    `Interpolates` are protocols of what it may have beyond this.
    """

    @property
    def name(self) -> str:
        """Word used in `methods=` and in plans."""

    def refuse(self, op: Op) -> str | None:
        """Return why this method does not apply to the op; None where it does."""

    def max_ranks(self, op: Op) -> RankTuple:
        """Return the ranks at which the chain is exact; the length is the number of ranks."""

    def modes(self, op: Op, spectrum: Spectrum) -> tuple[Unfolding, ...]:
        """Return the matrices whose ranks a policy chooses."""

    def ranks(self, unfolding_ranks: RankTuple) -> RankTuple:
        """Return the ranks of the method from one rank per mode."""

    def template(self, op: Op, ranks: RankTuple) -> Chain:
        """Return the chain with blank weights: its shapes, geometry and biases."""

    def decompose(
        self,
        op: Op,
        ranks: RankTuple,
        *,
        spectrum: Spectrum,
        placement: Placement,
        rng: np.random.Generator,
    ) -> Factorization:
        """Compute the chain, in the dtype of the op's weight, shaped like the template."""


@runtime_checkable
class EstimatesErrors(Protocol):
    """A decomposition that knows its errors without decomposing.

    Where one does not, a few of its ranks are decomposed for a budget to choose from.
    """

    def error_at_ranks(
        self, op: Op, spectrum: Spectrum, multiple_of: int
    ) -> Iterable[tuple[RankTuple, float | None]]:
        """Return ranks for a budget to choose from, each with its error.

        Args:
            op: the layer.
            spectrum: of its weight.
            multiple_of: the ranks are multiples of it, where there are such.

        Returns:
            Ranks with the squared error at them, in the units of `spectrum.tensor` under
            `spectrum.metric`; None for one that has to be decomposed.
        """


@runtime_checkable
class NamesBetterMethod(Protocol):
    """A decomposition that another one surpasses on some layers."""

    def surpassed(self, op: Op) -> str | None:
        """Return a decomposition that loses no more at any cost; None where there is none.

        Where the better one is allowed too, policies that compare methods leave this one out.
        """


@runtime_checkable
class CountsByFormula(Protocol):
    """A decomposition whose parameters and MACs a policy may count without building chains.

    Attributes:
        multilinear_costs: whether both counts are linear in each rank while the others are kept, as
            they are where each stage has each rank as an output or an input at most. Costs at any
            ranks then follow from those of a few templates. Without it, or where it is false, a
            template is built for all ranks that are looked at.
    """

    multilinear_costs: ClassVar[bool]


@runtime_checkable
class RanksUnfoldings(Protocol):
    """A decomposition that says which of its ranks is that of an unfolding, for the report.

    Attributes:
        ranks_of_unfoldings: by the name of an unfolding in the records of a plan, the place of its
            rank. With calibration data the rank of a matrix, and the output rank of a kernel, is
            judged by the "weighted" one.
    """

    ranks_of_unfoldings: ClassVar[Mapping[str, int]]


@runtime_checkable
class RegressesLaterStages(Protocol):
    """A decomposition whose stages after the first are the best for what the first one gives.

    The first stage has to act on leading parts of a row of the weight, at each of the positions of
    the rest alike: on the channels of a patch at each position of the kernel, or on all of it.
    """

    def with_later_stages(
        self, op: Op, chain: Chain, regression: Regression, metric: Metric
    ) -> Chain:
        """Return a chain with its first stage and other later ones.

        Args:
            op: the layer.
            chain: that `decompose` gave.
            regression: of the layer's outputs on what the first stage gives.
            metric: measures errors of the output.
        """


@runtime_checkable
class Interpolates(Protocol):
    """A decomposition that gives the chains of another one, with interpolative stages.

    At equal ranks it loses what the other one does. It has fewer parameters, and gathers channels,
    so that its time does not go by its multiply-accumulates. It is left out for layers in whose
    place an adapter builds no interpolative stages. Where it is a `CountsByFormula`, its costs are
    quadratic in each rank.

    Attributes:
        interpolates: the name of the other one.
    """

    @property
    def interpolates(self) -> str:
        """Name of the decomposition whose chains these are."""


def decompose(method: Decomposition, op: Op, ranks: RankTuple | int, placement: Placement) -> Chain:
    """Decompose one op, and return its chain.

    Args:
        method: the decomposition.
        op: the layer.
        ranks: ints, as many as the method has ranks.
        placement: "balanced" or "classical".

    Raises:
        RankfoldError: `op` is no op, the method does not apply, a rank is out of range,
            or the weight is empty, all zero or not finite.
    """
    if not isinstance(op, (Linear, Conv, ConvTranspose, Embedding)):
        raise RankfoldError(
            f"{method.name}: {type(op).__name__} is no op; give for example rankfold.Linear(weight)"
        )
    reason = method.refuse(op)
    if reason is not None:
        raise RankfoldError(f"{method.name}: {reason}")
    if placement not in ("balanced", "classical"):
        raise RankfoldError(f"placement {placement!r}; use 'balanced' or 'classical'")
    if not isinstance(ranks, Sequence):
        raise RankfoldError(
            f"{method.name}: ranks {ranks!r}; give {len(method.max_ranks(op))} ints"
        )
    ranks = tuple(ranks)
    method.template(op, ranks)
    try:
        spectrum = Spectrum(op)
    except Refused as refused:
        raise RankfoldError(f"{method.name}: {refused.reason}") from None
    rng = np.random.default_rng(0)
    return method.decompose(op, ranks, spectrum=spectrum, placement=placement, rng=rng).chain
