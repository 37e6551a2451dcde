"""`Planned`: the methods and ranks of a plan, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from rankfold.errors import RankfoldError
from rankfold.layers.layer import Layer
from rankfold.plan.plan import LayerPlan, Plan, check_same
from rankfold.policies.base import Choice, Judges


@dataclass(frozen=True)
class Planned:
    """Does what a plan says of the layers that it replaces; users give the plan in its place.

    Args:
        layers: method, ranks, remark and op of each of these, by path.
    """

    layers: Mapping[str, tuple[str | None, tuple[int, ...], str, str]]
    name: ClassVar[str] = "planned"
    judges: ClassVar[Judges] = "nothing"

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return the policy that carries out a plan."""
        return cls({p.path: (p.method, p.ranks, p.reason, p.op) for p in plan.replaced})

    def allocate(self, layers: Sequence[Layer]) -> Iterator[Choice]:
        """One choice per layer, layer by layer.

        Raises:
            RankfoldError: a layer has another shape than the one that was planned.
        """
        for layer in layers:
            method, ranks, reason, op = self.layers[layer.path]
            check_same(LayerPlan(path=layer.path, op=op), layer.op)
            yield Choice(method, ranks, reason)

    @classmethod
    def from_text(cls, argument: str) -> Self:
        """Read no text, since a plan is a file.

        Raises:
            RankfoldError: always.
        """
        raise RankfoldError("policy planned: give the plan itself")
