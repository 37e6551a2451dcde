"""One comparison: our forms and the peers, run once or measured in turns, and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.decomposition.sections import Section
from tests.benchmarks.decomposition.turns import Timed, in_turns

_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class Side:
    """One of those that are compared.

    Attributes:
        name: for the table.
        run: what is measured.
        figure: of what `run` returns, for example its relative error; not measured.
    """

    name: str
    run: Callable[[], Any]
    figure: Callable[[Any], float]


@dataclass(frozen=True)
class Outcome:
    """What came of one side; no seconds and no turns where nothing was measured."""

    name: str
    figure: float
    seconds: float
    turns: int


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        section: the table.
        layer: its name and shape.
        ranks: as text.
        count: how often the layer occurs in its network.
        own: our forms.
        peers: the others.
    """

    section: Section
    layer: str
    ranks: str
    count: int
    own: tuple[Outcome, ...]
    peers: tuple[Outcome, ...]

    def check(self) -> None:
        """Asserts that no figure of ours is higher than a peer's by more than the tolerance."""
        for own in self.own:
            for peer in self.peers:
                most = peer.figure * (1.0 + self.section.tolerance)
                assert own.figure <= most, (
                    f"{self.layer} at {self.ranks}: {self.section.figure} {own.figure:.6g} of "
                    f"{own.name}, {peer.figure:.6g} of {peer.name}"
                )


def outcomes(sides: Sequence[Side], benchmark: Any) -> list[Outcome]:
    """Runs all sides; the first one under the `benchmark` fixture, too.

    Where benchmarks are disabled each side runs once and nothing is measured.
    """
    first, *others = sides
    if benchmark.disabled:
        result = benchmark.pedantic(first.run)
        timed = [Timed(result, 0.0, 0), *(Timed(side.run(), 0.0, 0) for side in others)]
    else:
        benchmark.pedantic(first.run, rounds=_ROUNDS)
        timed = in_turns([side.run for side in sides])
    return [
        Outcome(side.name, side.figure(one.result), one.seconds, one.turns)
        for side, one in zip(sides, timed, strict=True)
    ]
