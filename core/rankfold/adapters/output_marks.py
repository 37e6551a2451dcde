"""Marks on values for the calls of layers that gave them, by which a trace finds output layers.

A call of a layer marks its output. The mark goes on to what is computed from that value alone, with
weights, constants or inputs of the model added or multiplied element by element, or beside others
in one array. Values of several calls that are joined element by element keep the marks of all,
unless one of the calls has seen what another gave: such are links of a residual chain.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

_INTERNAL = ("past", "cache", "mems", "attentions", "hidden_states")
"""Parts of the names of returned values that are caches or show the inside of a model. These words
are shared by models of several libraries, and by models of users that follow them; no class or
package tells which follow, so that the words are a default of all adapters that trace."""


def is_internal(name: str) -> bool:
    """Return whether a returned value of that name is no output but for the model's next call."""
    return any(word in name.lower() for word in _INTERNAL)


@dataclass(frozen=True)
class Activation:
    """A value computed from the model's inputs and arrays.

    Attributes:
        calls: of layers that it is computed from alone, a bit for each; 0 where these are mixed.
        ancestors: all calls of layers that it is computed from, a bit for each.
    """

    calls: int = 0
    ancestors: int = 0


@dataclass
class _Call:
    """A call of a layer: how many elements it gave, and whether these are rows of a table."""

    layer: str
    size: int
    looks_up: bool
    ancestors: int = 0


class Calls:
    """All calls of layers in a run or a program; the bit of each is its place in their order."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._numbers: dict[Hashable, int] = {}

    def mark(
        self,
        layer: str,
        data: Iterable[Activation],
        *,
        size: int,
        looks_up: bool = False,
        location: Hashable = None,
    ) -> Activation:
        """Return the output of a call.

        Args:
            layer: which is called.
            data: activations that its input is computed from.
            size: of the output, in elements.
            looks_up: whether these are rows of a table.
            location: where in a program the call stands, if it may come again; None for a new one.
        """
        number = (
            len(self._calls)
            if location is None
            else self._numbers.setdefault((layer, location), len(self._calls))
        )
        if number == len(self._calls):
            self._calls.append(_Call(layer, size, looks_up))
        seen = _union(activation.ancestors for activation in data)
        self._calls[number].ancestors |= seen
        return Activation(1 << number, seen | 1 << number)

    def joined(
        self,
        operands: Sequence[Activation],
        size: int,
        *,
        by_element: bool,
        weights: bool,
        adds: bool,
    ) -> Activation:
        """Return what an operation makes of activations, if they do not just stand side by side.

        Args:
            operands: the activations, one or more.
            size: of the result, in elements.
            by_element: whether all operands are joined element by element.
            weights: whether weights of the model are among the others.
            adds: whether operands are added up.
        """
        both = beside(operands)
        several = len({activation.calls for activation in operands}) > 1
        if not (several or weights):
            return both
        calls = [self._calls[i] for i in _bits(both.calls)]
        apart = (
            by_element
            # A factor that spreads a value over further elements is that of a matrix product.
            and not (weights and not adds and size > max((c.size for c in calls), default=0))
            # One that is mixed; and rows of tables added up or multiplied are features.
            and not (several and not all(activation.calls for activation in operands))
            and not (several and any(call.looks_up for call in calls))
            and not self._in_chain(both.calls)
        )
        return both if apart else Activation(0, both.ancestors)

    def layers(self, outputs: Iterable[Activation]) -> frozenset[str]:
        """Return the layers that some values are computed from alone; mixed ones name none."""
        return self._named(_union(activation.calls for activation in outputs))

    def unused(self) -> frozenset[str] | None:
        """Return the layers whose output no other layer uses; None where none was called."""
        used = _union(call.ancestors for call in self._calls)
        return self._named((1 << len(self._calls)) - 1 & ~used) if self._calls else None

    def _named(self, calls: int) -> frozenset[str]:
        return frozenset(self._calls[i].layer for i in _bits(calls))

    def _in_chain(self, calls: int) -> bool:
        """Return whether one of some calls has seen what another of them gave.

        Calls of one layer, which refines its output step by step, are no chain.
        """
        return any(
            self._calls[i].layer != self._calls[j].layer
            for i in _bits(calls)
            for j in _bits(self._calls[i].ancestors & calls)
        )


def beside(operands: Iterable[Activation]) -> Activation:
    """Return what activations that stand beside each other are in one array."""
    several = list(operands)
    calls = _union(activation.calls for activation in several)
    return Activation(calls, _union(activation.ancestors for activation in several))


def _union(bits: Iterable[int]) -> int:
    return reduce(or_, bits, 0)


def _bits(number: int) -> Iterator[int]:
    """Yield the places of the bits of a number."""
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest
