"""Costs of a layer and of chains in its place, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from rankfold.ops import (
    Chain,
    Conv,
    ConvTranspose,
    Cost,
    Embedding,
    Extent,
    Op,
    as_chain,
    blank,
    geometry,
    macs,
    params,
    with_weight,
)

_NOMINAL_OUTPUT = 32


class Costs:
    """The costs of a layer and of what may replace it.

    Args:
        op: the layer; its values are not kept.
        extents: the extent of the layer's input at each call in one forward pass; None where no
            example inputs were given.
        attended: MACs of products with the table of an `Embedding`, beside look-ups.

    Attributes:
        outline: the layer without its values, for what depends on its shape alone.
        beside: parameters of the layer that its op has not, as they are folded into the weight:
            they go with the layer.
        counted: whether the MACs of its calls are known, where there were example inputs.
    """

    def __init__(self, op: Op, extents: Sequence[Extent] | None, attended: int) -> None:
        self.outline = _outline(op)
        self._extents = extents
        self._attended = attended
        self.beside = 0
        self.counted = True

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, with shapes in place of blank arrays.

        pickle would write out the zeros that these stand for, as many as the weight has.
        """
        fields = vars(self.outline)
        arrays = [name for name in ("weight", "bias") if fields.get(name) is not None]
        shapes = {name: fields[name].shape for name in arrays}
        others = {name: value for name, value in fields.items() if name not in shapes}
        return {**vars(self), "outline": (type(self.outline), shapes, others)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the blank arrays anew."""
        kind, shapes, others = state["outline"]
        arrays = {name: blank(*shape) for name, shape in shapes.items()}
        vars(self).update({**state, "outline": kind(**arrays, **others)})

    @cached_property
    def before(self) -> Cost:
        """Cost of the layer itself."""
        return self.of(self.outline)

    def of(self, ops: Op | Chain) -> Cost:
        """Cost of the layer or of a chain in its place.

        Without example inputs the MACs are those of a nominal input, one that gives 32 outputs
        along every axis: good for comparing chains of one layer, not layers.
        """
        extents = self._extents
        if extents is None:
            extents = (_nominal_extent(self.outline),)
        chain = as_chain(ops)
        count = sum(macs(chain, extent) for extent in extents)
        # The product of an activation with the whole table (an output layer tied to an embedding)
        # costs one multiply-accumulate a parameter and position, of a table or of factors of it
        # alike.
        if self._attended:  # with the table, or with one factor of it after the other
            count += self._attended * params(chain) // params(self.outline)
        # The op stands for the layer with all that it holds; a chain is all there is in its place.
        beside = 0 if isinstance(ops, tuple) else self.beside
        return Cost(params(chain) + beside, count)

    def why_not_smaller(self, cost: Cost) -> str | None:
        """Return why a chain of that cost is no gain; None where it is one.

        A chain must have fewer parameters and no more MACs than the layer. A table look-up has no
        MACs, so an `Embedding` is judged by its parameters.
        """
        if cost.params >= self.before.params:
            return f"grew: parameters {self.before.params} → {cost.params}"
        # The layer's MACs may be 0: those of a table, and those of a layer that the inputs do not
        # reach. A chain in its place is then judged by its parameters.
        if self.before.macs and cost.macs > self.before.macs:
            nominal = self._extents is None
            where = " for a nominal input; give inputs= for the real ones" if nominal else ""
            return f"grew: MACs {self.before.macs} → {cost.macs}{where}"
        return None

    def remark(self, cost: Cost) -> str:
        """Return why a chain that is a gain has no MACs, or has some that the layer has not."""
        traced = self._extents is not None
        if traced and not self._extents:
            return "no call of it is counted on the example inputs"
        if self.before.macs == 0 and cost.macs:
            added = f"adds {cost.macs} MACs" if traced else "adds MACs"
            return f"{added}: a table look-up has none"
        return ""


def _outline(op: Op) -> Op:
    outline = with_weight(op, blank(*op.weight.shape))
    if isinstance(outline, Embedding) or op.bias is None:
        return outline
    return replace(outline, bias=blank(*op.bias.shape))


def _nominal_extent(op: Op) -> Extent:
    # A matrix costs the same at each position, so one position is as good as any number.
    if not isinstance(op, (Conv, ConvTranspose)):
        return (1,)
    geo = geometry(op)
    if isinstance(op, ConvTranspose):
        # The padding of a transposed convolution is cut off its output, so the input is larger by
        # it.
        return (1, *(_NOMINAL_OUTPUT + 2 * max(p) for p in geo.pads((1,) * geo.axes)))
    return (
        1,
        # The least extent at which 32 windows of that reach fit, without padding.
        *((_NOMINAL_OUTPUT - 1) * s + r for s, r in zip(geo.stride, geo.reach, strict=True)),
    )
