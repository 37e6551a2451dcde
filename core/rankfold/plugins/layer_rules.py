"""The layer rules of plugins: found by the class of a layer, and carried out so that faults stay.

Whatever a rule's function raises, or gives in place of an op, becomes the reason why its layer is
left alone.
"""

from __future__ import annotations

from typing import Any

from rankfold.errors import RankfoldError, Refused
from rankfold.faults import contained
from rankfold.ops import Op, is_op
from rankfold.plugins.hookspecs import LayerRule
from rankfold.plugins.registry import imported, registry, resolve


def rule_for(adapter: str, cls: type) -> LayerRule | None:
    """Return the rule of an adapter for a class; subclasses of a rule's class have none.

    Args:
        adapter: by its name.
        cls: of a layer. A rule's class is looked up only in modules that are imported.
    """
    # A subclass may have a `forward` of its own, which the rule's function knows nothing of. The
    # class of a layer is loaded, so that a rule for it is seen without importing anything.
    for rule in registry().rules:
        if rule.adapter == adapter and imported(rule.layer) is cls:
            return rule
    return None


def read_by(rule: LayerRule, layer: Any) -> Op:
    """Read a layer as an op by a rule.

    Raises:
        Refused: the rule declines, fails, or gives no op.
    """
    op = carried_out(rule.read, layer)
    if is_op(op):
        return op
    raise Refused(f"the layer rule {rule.read!r} gave {type(op).__name__}, not an op")


def carried_out(target: str, *arguments: Any) -> Any:
    """Call a rule's function, named "module:function", and return what it gives.

    Raises:
        Refused: it declines or fails.
    """
    who = f"the layer rule {target!r}"
    # Within the net, since importing the module may fail as well as calling the function.
    try:
        with contained(who, Refused):
            return resolve(target)(*arguments)
    except RankfoldError as error:  # such as that of an op that cannot be; it is of one layer
        raise Refused(f"{who} failed: {error}") from error
