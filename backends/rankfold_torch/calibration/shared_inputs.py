"""Layers that read the same tensor, as the projections of an attention do: it is summed up once.

That two layers share their input is seen at their first calls and has to hold at all further ones.
If it turns out not to, sums with too much in them cannot be parted any more, and the pass is made
again with sums for each layer.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from rankfold.ops import Linear, Op
from rankfold_torch.torch_internals import version_of

S = TypeVar("S")


@dataclass(eq=False)
class InputReader(Generic[S]):
    """One layer as a reader of inputs.

    Attributes:
        separate: sums over its inputs, as long as it shares none.
        kind: equal for two layers whose sums over one input are the same; None for a layer that
            shares its inputs with none.
        calls: that had an input so far.
        first: the layer whose sums hold the inputs of this one; None as long as it is itself.
        others: the layers whose inputs its sums hold besides.
    """

    separate: S
    kind: Hashable
    calls: int = 0
    first: InputReader[S] | None = None
    others: list[InputReader[S]] = field(default_factory=list)

    @property
    def sums(self) -> S:
        """Sums over its inputs, which may be those of another layer."""
        return (self.first or self).separate


def kind_of(op: Op) -> Hashable:
    """Return what two layers that share sums have to have in common; None for no sharing."""
    # Of a convolution the rows depend on stride and padding, too, and are mostly sampled.
    return (op.groups, op.weight.shape[1]) if isinstance(op, Linear) else None


class SharedInputs:
    """The inputs of a forward pass, by tensor.

    Attributes:
        holds: whether the layers that shared an input at first have shared all of theirs since.
    """

    def __init__(self) -> None:
        self.holds = True
        self._seen: dict[int, tuple[weakref.ref[torch.Tensor], int, InputReader[Any]]] = {}

    def begin(self) -> None:
        """Forget the tensors of the last forward pass."""
        self._seen.clear()

    def covers(self, reader: InputReader[Any], x: torch.Tensor, *, whole: bool) -> bool:
        """Note a call of a layer; return whether its input is in the sums of another one already.

        Args:
            reader: the layer.
            x: its input.
            whole: whether all positions of the input are summed up, and no sample of them.
        """
        # By identity while the tensor is alive, not by address, which the next tensor may get. The
        # version counts writes in place. Inference tensors count none.
        known = whole and reader.kind is not None and not x.is_inference()
        source = self._source(x) if known else None
        alike = source is not None and source.kind == reader.kind
        # Only sums of this one call: what else they held would be no input of this layer.
        if source is not None and alike and reader.calls == 0 and source.calls == 1:
            reader.first = source
            source.others.append(reader)
        if reader.first is not None:
            self.holds &= source is reader.first and source.calls == reader.calls + 1
        else:
            self.holds &= all(other.calls == reader.calls for other in reader.others)
            # The first of its readers stays the one that a tensor is known by, so that the third
            # finds the sums of the first, too.
            if known and not alike:
                self._seen[id(x)] = weakref.ref(x), version_of(x), reader
        reader.calls += 1
        return reader.first is not None

    def agrees(self, reader: InputReader[Any]) -> bool:
        """Return whether a layer has shared all inputs of the layer that it shares sums with."""
        return reader.first is None or reader.first.calls == reader.calls

    def _source(self, x: torch.Tensor) -> InputReader[Any] | None:
        """Return the layer whose sums hold a tensor as it is now."""
        reference, version, reader = self._seen.get(id(x), (None, 0, None))
        same = reference is not None and reference() is x and version == version_of(x)
        return reader if same else None
