"""`Ranks`: given ranks, obeyed to the letter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, TypeAlias

from rankfold.decompose.base import Decomposition, RankTuple
from rankfold.errors import RankfoldError, Refused
from rankfold.layers.layer import Layer
from rankfold.ops.geometry import is_int
from rankfold.policies.base import Choice, Judges
from rankfold.policies.selection import check_patterns, matches

RankSetting: TypeAlias = int | tuple[int, ...] | Literal["full"]


@dataclass(frozen=True)
class Ranks:
    """The same ranks for every layer, or ranks by glob pattern on the layer's path.

    Each layer gets the first allowed method that takes that many ranks, even where the layer grows;
    the plan then says so. The first pattern that matches counts; a layer that none matches is left
    alone.

    Args:
        ranks: an int (used for every rank of the method), a tuple of ints (for methods with that
            many ranks), "full" (the ranks at which the chain is exact), or a mapping from pattern
            to any of these.

    Raises:
        RankfoldError: a rank below 1 or of another type. While planning: a pattern that matches no
            layer, or a rank beyond the maximum of a layer that a pattern names (a layer that
            cannot have the rank given for all is left alone, with that reason).

    Example:
        >>> model = nn.Sequential(nn.Conv2d(32, 48, 3), nn.Conv2d(48, 64, 3), nn.Linear(64, 96))
        >>> plan = rf.plan(model, rf.Ranks({"0": (12, 8), "2": 16}))
        >>> plan["0"].ranks, plan["2"].ranks
        ((12, 8), (16,))
        >>> plan["1"].reason
        'no pattern of Ranks matches it'
    """

    ranks: RankSetting | Mapping[str, RankSetting]
    name: ClassVar[str] = "ranks"
    judges: ClassVar[Judges] = "nothing"

    def __post_init__(self) -> None:
        if isinstance(self.ranks, Mapping):
            checked: object = {pattern: _checked(value) for pattern, value in self.ranks.items()}
        else:
            checked = _checked(self.ranks)
        object.__setattr__(self, "ranks", checked)

    def allocate(self, layers: Sequence[Layer]) -> Iterator[Choice]:
        """One choice per layer, layer by layer."""
        if isinstance(self.ranks, Mapping):
            check_patterns("Ranks", self.ranks, [layer.paths for layer in layers])
        for layer in layers:
            yield self._choose(layer)

    def _choose(self, layer: Layer) -> Choice:
        wanted: RankSetting | None
        if isinstance(self.ranks, Mapping):
            fitting = (v for p, v in self.ranks.items() if matches(p, layer.paths))
            wanted = next(fitting, None)
        else:
            wanted = self.ranks
        if wanted is None:
            return Choice(None, reason="no pattern of Ranks matches it")
        refusals = list(layer.refusals.values())
        for name, method in layer.methods.items():
            try:
                ranks = _ranks_of(method, layer, wanted)
                if ranks is None:
                    refusals.append(f"{name} does not take the ranks {wanted}")
                    continue
                cost = layer.template_cost(name, ranks)
            except Refused as refused:
                refusals.append(refused.reason)
                continue
            except RankfoldError as error:
                if isinstance(self.ranks, Mapping):
                    raise
                return Choice(None, reason=str(error).removeprefix(f"layer {layer.path!r}: "))
            return Choice(name, ranks, layer.why_not_smaller(cost) or "")
        return Choice(None, reason="; ".join(refusals))

    @classmethod
    def from_text(cls, argument: str) -> Self:
        """`ranks:full`, `ranks:16` or `ranks:16,24`."""
        if argument == "full":
            return cls("full")
        try:
            ranks = tuple(int(part) for part in argument.split(","))
        except ValueError:
            raise RankfoldError(
                f"policy ranks: {argument!r}; write ranks:16, ranks:16,24 or ranks:full"
            ) from None
        return cls(ranks[0] if len(ranks) == 1 else ranks)


def _checked(value: object) -> RankSetting:
    """The given ranks, with integers of NumPy as ints.

    Raises:
        RankfoldError: a rank below 1 or of another type.
    """
    if isinstance(value, str) and value == "full":
        return "full"
    ranks = value if isinstance(value, tuple) else (value,)
    for rank in ranks:
        if not is_int(rank):
            raise RankfoldError(f"Ranks: {value!r}; use an int, a tuple of ints or 'full'")
        if rank < 1:
            raise RankfoldError(f"Ranks: rank {rank}; use at least 1")
    if not ranks:
        raise RankfoldError("Ranks: an empty tuple; give at least one rank")
    ints = tuple(int(rank) for rank in ranks)
    return ints if isinstance(value, tuple) else ints[0]


def _ranks_of(method: Decomposition, layer: Layer, wanted: RankSetting) -> RankTuple | None:
    most = method.max_ranks(layer.costs.outline)
    if wanted == "full":
        return most
    if isinstance(wanted, tuple):
        return wanted if len(wanted) == len(most) else None
    return (int(wanted),) * len(most)
