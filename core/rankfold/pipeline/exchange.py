"""Modules put in the place of layers; what an adapter finds stale afterwards is left alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankfold.adapters.base import Adapter, Checked
from rankfold.faults import of_adapter


def replaced(
    adapter: Adapter, model: Any, modules: Mapping[str, Any], *, inplace: bool
) -> tuple[Any, Mapping[str, str]]:
    """The model with all of the modules, and why layers must be left alone.

    Where there is such a layer the model is of no use; see `rankfold.adapters.base.Checked`.
    """
    with of_adapter(adapter):
        if isinstance(adapter, Checked):
            return adapter.replaced(model, modules, inplace=inplace)
        return adapter.replace(model, modules, inplace=inplace), {}


def replaced_where_possible(
    adapter: Adapter, model: Any, modules: Mapping[str, Any], *, inplace: bool
) -> tuple[Any, Mapping[str, str]]:
    """The model with those of the modules that can take the place of their layers.

    Returns:
        The model, and by path of each layer that was left alone, why.
    """
    left: dict[str, str] = {}
    while True:
        chosen = {path: module for path, module in modules.items() if path not in left}
        small, more = replaced(adapter, model, chosen, inplace=inplace)
        if not more:
            return small, left
        left.update(more)
