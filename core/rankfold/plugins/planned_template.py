"""The chain that a plan promises for a layer, without its values."""

from __future__ import annotations

from rankfold.decompose.guarded import Guarded
from rankfold.errors import Refused
from rankfold.ops import Chain, Op
from rankfold.plan.plan import LayerPlan
from rankfold.plugins.registry import registry


def planned_template(layer: LayerPlan, op: Op) -> Chain:
    """Return the chain of the planned method and ranks, of which only the shapes count.

    Raises:
        RankfoldError: the method is unknown or a rank is out of range.
        Refused: the method does not apply to the layer, or it fails.
    """
    assert layer.method is not None
    method = Guarded(layer.method, registry().methods([layer.method])[layer.method])
    reason = method.refuse(op)
    if reason is not None:
        raise Refused(reason)
    return method.template(op, layer.ranks)
