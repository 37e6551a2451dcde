"""Values of a jaxpr that are a layer's kernel, with the place in it of each of their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.extend.core import JaxprEqn

from rankfold_jax.jaxpr.dataflow import bind
from rankfold_jax.jaxpr.provenance import CASTS, Provenance, moved, sliced_by_scan

Index = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class IndexedValue:
    """A value that is one of the model's arrays, or a slice of it, moved about.

    Attributes:
        label: which.
        index: (*loops, *shape of the value), the flat place of each number in the array; None where
            that is not known before the model runs.
        counters: for each loop that takes one slice at a time, the number of the slice.
    """

    label: Provenance
    index: Index | None
    counters: tuple[Any, ...] = ()

    @staticmethod
    def whole(leaf: int, shape: tuple[int, ...]) -> IndexedValue:
        """An array of the model as it is."""
        index = np.arange(np.prod(shape, dtype=np.int64), dtype=np.int32).reshape(shape)
        return IndexedValue(Provenance(leaf, axes=tuple(range(len(shape)))), index)

    def sliced(self, length: int, counter: Any) -> IndexedValue:
        """Return the slice that one iteration of a scan over the first axis is given.

        Args:
            length: of the scan.
            counter: the number of the iteration; a Python int where it is known.
        """
        (label,) = sliced_by_scan([self.label], length)
        assert label is not None
        if isinstance(counter, int):
            index = None if self.index is None else self.index[counter]
            return IndexedValue(label, index, self.counters)
        return IndexedValue(label, self.index, (*self.counters, counter))


def label_of(value: IndexedValue | None) -> Provenance | None:
    """The label of a value, if it is tracked."""
    return None if value is None else value.label


def moved_by(
    eqn: JaxprEqn, inside: Sequence[IndexedValue | None], arguments: Sequence[Any]
) -> IndexedValue | None:
    """The result of an equation that only moves the numbers of its first operand about.

    Args:
        eqn: the equation.
        inside: which of its operands are tracked.
        arguments: its operands; of the first nothing is read.
    """
    label = moved(eqn, [label_of(value) for value in inside])
    if label is None:
        return None
    first = inside[0]
    assert first is not None
    return IndexedValue(label, _moved(eqn, first, arguments[1:]), first.counters)


def _moved(eqn: JaxprEqn, first: IndexedValue, others: Sequence[Any]) -> Index | None:
    # The equation is carried out on places in place of numbers, so that what comes out says where
    # each number went, whatever the primitive is. With operands that are not known before the
    # program runs it cannot be.
    if first.index is None or eqn.primitive.name in CASTS:
        return first.index
    if any(isinstance(other, jax.core.Tracer) for other in others):
        return None

    def once(index: Any) -> Any:
        return bind(eqn, [index, *others])[0]

    # Each loop around the equation has put an axis in front of the index.
    function: Callable[[Any], Any] = once
    for _ in first.counters:
        function = jax.vmap(function)
    with jax.ensure_compile_time_eval():
        return np.asarray(function(jnp.asarray(first.index)))
