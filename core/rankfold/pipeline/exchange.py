"""Modules put in the place of layers; what an adapter finds stale afterwards is left alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankfold.adapters.capabilities import Capabilities
from rankfold.faults import of_adapter


def replaced(
    can: Capabilities, model: Any, modules: Mapping[str, Any], *, inplace: bool
) -> tuple[Any, Mapping[str, str]]:
    """Return the model with all of the modules, and why layers must be left alone.

    Where there is such a layer the model is of no use; see `rankfold.adapters.base.Checked`.
    """
    with of_adapter(can.adapter):
        if can.checked is not None:
            return can.checked.replaced(model, modules, inplace=inplace)
        return can.builder.replace(model, modules, inplace=inplace), {}


def replaced_where_possible(
    can: Capabilities, model: Any, modules: Mapping[str, Any], *, inplace: bool
) -> tuple[Any, Mapping[str, str]]:
    """Return the model with those of the modules that can take the place of their layers.

    Returns:
        The model, and by path of each layer that was left alone, why.
    """
    # Each round leaves out at least one more layer, so the rounds end. A round that found one has
    # changed nothing in place.
    left: dict[str, str] = {}
    while True:
        chosen = {path: module for path, module in modules.items() if path not in left}
        small, more = replaced(can, model, chosen, inplace=inplace)
        if not more:
            return small, left
        left.update(more)
