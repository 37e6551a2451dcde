"""A decomposition of a plugin, called so that its faults stay with the layer they happen on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from rankfold.contracts import Decomposition, Factored, Mode, Placement, Ranks
from rankfold.errors import RankfoldError, Refused
from rankfold.ops import Chain, Op
from rankfold.spectrum import Spectrum

T = TypeVar("T")
_STEPS = 8


class Guarded:
    """A decomposition whose faults cost a layer its decomposition, and nothing else.

    Args:
        method: the decomposition; whatever its methods raise becomes a refusal, except for an
            error about the arguments they were given.
    """

    def __init__(self, method: Decomposition) -> None:
        self._method = method
        self.name = method.name

    def refuse(self, op: Op) -> str | None:
        """As `Decomposition.refuse`."""
        return self._call(self._method.refuse, op)

    def surpassed(self, op: Op) -> str | None:
        """As `Decomposition.surpassed`; None where there is no such method."""
        method = getattr(self._method, "surpassed", None)
        return None if method is None else self._call(method, op)

    def max_ranks(self, op: Op) -> Ranks:
        """As `Decomposition.max_ranks`."""
        return self._call(self._method.max_ranks, op)

    def modes(self, op: Op, spectrum: Spectrum) -> tuple[Mode, ...]:
        """As `Decomposition.modes`."""
        return self._call(self._method.modes, op, spectrum)

    def ranks(self, mode_ranks: Ranks) -> Ranks:
        """As `Decomposition.ranks`."""
        return self._call(self._method.ranks, mode_ranks)

    def template(self, op: Op, ranks: Ranks) -> Chain:
        """As `Decomposition.template`."""
        return self._call(self._method.template, op, ranks)

    def offers(
        self, op: Op, spectrum: Spectrum, multiple_of: int
    ) -> Sequence[tuple[Ranks, float | None]]:
        """As `Decomposition.offers`; a few ranks without an error where there is no such method."""
        if hasattr(self._method, "offers"):
            return self._call(self._method.offers, op, spectrum, multiple_of)
        most = self.max_ranks(op)
        steps = [step / _STEPS for step in range(1, _STEPS + 1)]
        grid = {tuple(max(1, round(step * rank)) for rank in most) for step in steps}
        return [(ranks, None) for ranks in sorted(grid)]

    def decompose(
        self,
        op: Op,
        ranks: Ranks,
        *,
        spectrum: Spectrum,
        placement: Placement,
        rng: np.random.Generator,
    ) -> Factored:
        """As `Decomposition.decompose`."""
        call = partial(self._method.decompose, spectrum=spectrum, placement=placement, rng=rng)
        factored = self._call(call, op, ranks)
        if not isinstance(factored, Factored):
            raise Refused(f"{self.name} failed: it gave {type(factored).__name__}, not Factored")
        return factored

    def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return function(*arguments)
        except (RankfoldError, Refused):
            raise
        except Exception as error:  # a plugin's fault must not stop the rest
            raise Refused(f"{self.name} failed: {error!r}") from error
