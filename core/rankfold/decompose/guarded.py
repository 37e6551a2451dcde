"""Calls of plugins' decompositions that confine a fault to the layer where it happens."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rankfold.calibration.weighted_norm import Metric
from rankfold.decompose.base import (
    Decomposition,
    Factorization,
    Placement,
    RankTuple,
    Unfolding,
)
from rankfold.decompose.reduced_rank_regression import Regression
from rankfold.decompose.spectrum import Spectrum
from rankfold.errors import Refused
from rankfold.faults import contained, is_ours
from rankfold.linalg import Array, host, is_finite, read_only
from rankfold.ops import Chain, Op, is_op, layout
from rankfold.ops.ownership import copied, protected

_STEPS = 8
"""Ranks to decompose at for a budget, where the decomposition estimates no errors."""


class Guarded:
    """A decomposition whose faults cost a layer its decomposition, and nothing else.

    Exceptions and invalid results of its methods become refusals, except for an error about their
    arguments. A decomposition that is not rankfold's own gets a copy of the op: the memory of an op
    may be that of the user's model, and there are ways around its protection.

    Args:
        name: under which the decomposition is registered.
        method: the decomposition.

    Attributes:
        name: under which the decomposition is registered.
        multilinear_costs: as `CountsByFormula` has it.
        interpolates: as `Interpolates` has it; "" for a decomposition that is none.
        ranks_of_unfoldings: as `RanksUnfoldings` has it; empty for a decomposition that is none.
    """

    def __init__(self, name: str, method: Decomposition) -> None:
        self.name = name
        self._method = method
        self._is_ours = is_ours(method)
        # Which of the optional protocols it has is asked here, once; by name and not by
        # `isinstance`, which since Python 3.12 does not see what `__getattr__` of a wrapper gives.
        with contained(name, Refused):
            self.multilinear_costs = getattr(method, "multilinear_costs", False) is True
            self._surpassed = getattr(method, "surpassed", None)
            # `offers` is its name in plugins of API 1.1.
            estimate = getattr(method, "error_at_ranks", None)
            self._error_at_ranks = getattr(method, "offers", None) if estimate is None else estimate
            self._with_later_stages = getattr(method, "with_later_stages", None)
            self.interpolates = str.__str__(getattr(method, "interpolates", ""))
            indices = dict(getattr(method, "ranks_of_unfoldings", {}))
            self.ranks_of_unfoldings = {n: operator.index(i) for n, i in indices.items()}

    def refuse(self, op: Op) -> str | None:
        """Call `Decomposition.refuse`."""
        with contained(self.name, Refused):
            reason = self._method.refuse(self._for_method(op))
            return None if reason is None else str.__str__(reason)

    def surpassed(self, op: Op) -> str | None:
        """Call `NamesBetterMethod.surpassed`; None where the method has it not."""
        with contained(self.name, Refused):
            if self._surpassed is None:
                return None
            better = self._surpassed(self._for_method(op))
            return None if better is None else str.__str__(better)

    def max_ranks(self, op: Op) -> RankTuple:
        """Call `Decomposition.max_ranks`."""
        with contained(self.name, Refused):
            return _ranks(self._method.max_ranks(self._for_method(op)))

    def modes(self, op: Op, spectrum: Spectrum) -> tuple[Unfolding, ...]:
        """Call `Decomposition.modes`."""
        with contained(self.name, Refused):
            unfoldings = tuple(
                map(self._unfolding, self._method.modes(self._for_method(op), spectrum))
            )
            if not unfoldings:
                raise ValueError("modes gave none")
            return unfoldings

    def ranks(self, unfolding_ranks: RankTuple) -> RankTuple:
        """Call `Decomposition.ranks`."""
        with contained(self.name, Refused):
            return _ranks(self._method.ranks(unfolding_ranks))

    def template(self, op: Op, ranks: RankTuple) -> Chain:
        """Call `Decomposition.template`."""
        with contained(self.name, Refused):
            return _chain(self._method.template(self._for_method(op), ranks))

    def error_at_ranks(
        self, op: Op, spectrum: Spectrum, multiple_of: int
    ) -> Sequence[tuple[RankTuple, float | None]]:
        """Call `EstimatesErrors.error_at_ranks`; without it, return ranks without errors."""
        with contained(self.name, Refused):
            if self._error_at_ranks is not None:
                return [
                    (_ranks(ranks), None if error is None else float(error))
                    for ranks, error in self._error_at_ranks(
                        self._for_method(op), spectrum, multiple_of
                    )
                ]
        most = self.max_ranks(op)
        steps = [step / _STEPS for step in range(1, _STEPS + 1)]
        grid = {tuple(max(1, round(step * rank)) for rank in most) for step in steps}
        return [(ranks, None) for ranks in sorted(grid)]

    def decompose(
        self,
        op: Op,
        ranks: RankTuple,
        *,
        spectrum: Spectrum,
        placement: Placement,
        rng: np.random.Generator,
    ) -> Factorization:
        """Call `Decomposition.decompose`, and check what it returns."""
        planned = [layout(stage) for stage in self.template(op, ranks)]
        with contained(self.name, Refused):
            factored = self._method.decompose(
                self._for_method(op), ranks, spectrum=spectrum, placement=placement, rng=rng
            )
            if not isinstance(factored, Factorization):
                raise TypeError(f"decompose gave {type(factored).__name__}, not Factorization")
            chain = _chain(factored.chain)
            if [layout(stage) for stage in chain] != planned:
                raise ValueError("decompose gave other layers than template")
            if not self._is_ours:  # a plugin may use the memory again for the next layer
                chain = tuple(map(copied, chain))
            sensitivity = factored.sensitivity
            return Factorization(
                tuple(map(protected, chain)),
                float(factored.error),
                str.__str__(factored.remark),
                None if sensitivity is None else float(sensitivity),
            )

    @property
    def regresses_later_stages(self) -> bool:
        """Whether the method is a `RegressesLaterStages`."""
        return self._with_later_stages is not None

    def with_later_stages(
        self, op: Op, chain: Chain, regression: Regression, metric: Metric
    ) -> Chain:
        """Call `RegressesLaterStages.with_later_stages`, and check what it returns."""
        planned = list(map(layout, chain))
        with contained(self.name, Refused):
            assert self._with_later_stages is not None
            stages = _chain(
                self._with_later_stages(self._for_method(op), chain, regression, metric)
            )
            if list(map(layout, stages)) != planned:
                raise ValueError("with_later_stages gave other layers")
            if not all(is_finite(stage.weight) for stage in stages):
                raise ValueError("with_later_stages gave values that are not finite")
            return stages if self._is_ours else tuple(map(copied, stages))

    def _for_method(self, op: Op) -> Op:
        return op if self._is_ours else protected(copied(op))

    def _unfolding(self, mode: Unfolding) -> Unfolding:
        rows, columns = map(operator.index, mode.sides)

        def values() -> Array:  # only when a policy reads them: they take an eigensolver
            with contained(self.name, Refused):
                squares = host(mode.values)
                if squares.ndim != 2 or squares.dtype.kind != "f" or not squares.size:
                    raise TypeError(f"values of a mode are {squares.dtype} of {squares.shape}")
                return read_only(squares)

        # Of a plugin's unfolding nothing is recorded, whatever it calls itself.
        return Unfolding(
            values,
            (rows, columns),
            operator.index(mode.channels),
            float(mode.scale),
            mode.name if self._is_ours else "",
        )


def _ranks(values: Iterable[Any]) -> RankTuple:
    return tuple(map(operator.index, values))


def _chain(stages: Iterable[Any]) -> Chain:
    chain = tuple(stages)
    if not chain or not all(map(is_op, chain)):
        raise TypeError(f"a chain is {[type(stage).__name__ for stage in chain]}, not of ops")
    return chain
