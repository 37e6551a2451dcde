"""The chain that a plan promises for a layer, without its values."""

from __future__ import annotations

from rankfold.decompose.guarded import Guarded
from rankfold.decompose.interpolative import template_with_pivots
from rankfold.errors import RankfoldError, Refused
from rankfold.ops import Chain, Op
from rankfold.plan.plan import LayerPlan
from rankfold.plugins.registry import registry


def planned_template(layer: LayerPlan, op: Op) -> Chain:
    """Return the chain of the planned method and ranks, of which only the shapes count.

    Raises:
        RankfoldError: the method is unknown, a rank is out of range, or the pivots do not fit.
        Refused: the method does not apply to the layer, or it fails.
    """
    assert layer.method is not None
    method = Guarded(layer.method, registry().methods([layer.method])[layer.method])
    reason = method.refuse(op)
    if reason is not None:
        raise Refused(reason)
    template = method.template(op, layer.ranks)
    try:
        return template_with_pivots(template, layer.pivots) if layer.pivots else template
    except RankfoldError as error:
        raise RankfoldError(f"layer {layer.path!r}: {error}") from None
