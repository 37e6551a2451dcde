"""What a decomposition is: it turns an op into a chain of ops at given ranks.

These are structural types: nothing is inherited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import (
    Literal,
    Protocol,
    TypeAlias,
    runtime_checkable,
)

import numpy as np

from rankfold.decompose.spectrum import Spectrum
from rankfold.errors import RankfoldError, Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, ConvTranspose, Embedding, Linear, Op

RankTuple: TypeAlias = tuple[int, ...]
Placement: TypeAlias = Literal["balanced", "classical"]


class Unfolding:
    """One matrix of a layer whose rank a policy chooses.

    Args:
        values: those below, or a function that gives them: it is called only where a policy looks
            at them, so that one which looks at shapes alone costs no eigendecomposition.
        sides: the (rows, columns) of the matrix of one group.
        channels: the channel count that a rank given as a share refers to.
        scale: what the weight was divided by.

    Attributes:
        sides: as given.
        channels: as given.
        scale: as given.
    """

    def __init__(
        self,
        values: Array | Callable[[], Array],
        sides: tuple[int, int],
        channels: int,
        scale: float,
    ) -> None:
        self._values = values
        self.sides = sides
        self.channels = channels
        self.scale = scale

    @property
    def values(self) -> Array:
        """The squared singular values of the weight over `scale`.

        (groups, n), descending, where n is the smaller side of the matrix.
        """
        return self._values() if callable(self._values) else self._values


@dataclass(frozen=True, eq=False)
class Factorization:
    """A decomposed layer.

    Attributes:
        chain: in the layer's place.
        error: ‖W − Ŵ‖ / ‖W‖ of the weight.
        remark: what to know of how it was found; "" for nothing.
        sensitivity: of a CP model, the expected squared relative change of the weight per unit
            variance of noise relative to the factors; None for other models.
    """

    chain: Chain
    error: float
    remark: str = ""
    sensitivity: float | None = None


class Decomposition(Protocol):
    """One way to turn an op into a chain of ops.

    What a decomposition may have beyond this are protocols of their own: `EstimatesErrors` and
    `NamesBetterMethod`.
    """

    @property
    def name(self) -> str:
        """The word used in `methods=` and in plans."""

    def refuse(self, op: Op) -> str | None:
        """Why this method does not apply to the op; None where it does."""

    def max_ranks(self, op: Op) -> RankTuple:
        """The ranks at which the chain is exact; the length is the number of ranks."""

    def modes(self, op: Op, spectrum: Spectrum) -> tuple[Unfolding, ...]:
        """The matrices whose ranks a policy chooses."""

    def ranks(self, unfolding_ranks: RankTuple) -> RankTuple:
        """The ranks of the method from one rank per mode."""

    def template(self, op: Op, ranks: RankTuple) -> Chain:
        """The chain with all-zero weights that take no memory: its shapes, geometry and biases."""

    def decompose(
        self,
        op: Op,
        ranks: RankTuple,
        *,
        spectrum: Spectrum,
        placement: Placement,
        rng: np.random.Generator,
    ) -> Factorization:
        """The chain, in the dtype of the op's weight, shaped like the template."""


@runtime_checkable
class EstimatesErrors(Protocol):
    """A decomposition that knows its errors without decomposing.

    A few ranks of one that does not are decomposed where a budget chooses between them.
    """

    def error_at_ranks(
        self, op: Op, spectrum: Spectrum, multiple_of: int
    ) -> Iterable[tuple[RankTuple, float | None]]:
        """Ranks for a budget to choose from, each with its error.

        Args:
            op: the layer.
            spectrum: of its weight.
            multiple_of: of the ranks, where there are such.

        Returns:
            Ranks with the squared error at them, in the units of `spectrum.tensor` under
            `spectrum.metric`; None for one that has to be decomposed.
        """


@runtime_checkable
class NamesBetterMethod(Protocol):
    """A decomposition that another one surpasses on some layers."""

    def surpassed(self, op: Op) -> str | None:
        """The name of a decomposition that loses no more at any cost; None where there is none.

        Where that one is allowed too, no policy that compares methods looks at this one.
        """


def decompose(method: Decomposition, op: Op, ranks: RankTuple | int, placement: Placement) -> Chain:
    """The chain of one op.

    Raises:
        RankfoldError: what is given is no op, the method does not apply, a rank is out of range,
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
