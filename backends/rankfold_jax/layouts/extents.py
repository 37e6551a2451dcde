"""Input extents of each layer, from the products that its kernel takes part in."""

from __future__ import annotations

from rankfold.errors import Refused
from rankfold.ops import Extent
from rankfold_jax.jaxpr.dataflow import Dataflow
from rankfold_jax.jaxpr.provenance import Leaf
from rankfold_jax.layouts.base import LayerLayout
from rankfold_jax.layouts.stacks import ObservedAxes


def extents_of(
    leaf: Leaf, form: LayerLayout, dataflow: Dataflow, *, calls: int, has_own_product: bool
) -> tuple[Extent, ...]:
    """Return the extent of a layer's input at each use of its kernel.

    Args:
        leaf: the label of the kernel.
        form: of the layer.
        dataflow: through the jaxpr of the model.
        calls: how often the layer was called, at least.
        has_own_product: whether the layer was given a product of its own, which may treat the
            kernel in any way; nothing it does with it is a reason then.

    Raises:
        Refused: something else is done with the kernel.
    """
    extents = []
    uses = dataflow.of(leaf)
    # A jaxpr tells uses, not users. Each call of the layer multiplies by its kernel once at most,
    # so that more uses than calls are somebody else's.
    if len(uses) > calls:
        raise Refused("its kernel is also used by something else than the layer")
    for use in uses:
        try:
            extent = form.extent(use)
        except Refused:
            if not has_own_product:
                raise
            continue
        if extent is not None:
            extents.append(extent)
    if not has_own_product:
        for read in dataflow.reads:
            if read.leaf == leaf:
                raise Refused(f"its kernel goes into a {read.primitive} before it is used")
    return tuple(extents)


def seen_axes(leaf: Leaf, dataflow: Dataflow) -> ObservedAxes:
    """Return what a trace showed about the axes of a layer's kernel."""
    uses = dataflow.of(leaf)
    stacked: frozenset[int] = frozenset().union(*(use.stacked for use in uses))
    summed: frozenset[int] = frozenset().union(*(use.summed for use in uses))
    # Two uses may disagree, of a tied kernel say: such an axis is left undecided.
    return ObservedAxes(stacked - summed, summed - stacked)
