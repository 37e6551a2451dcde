"""The entry of config.json by which a compressed model is opened; this module imports no framework.

It stands where transformers looks for a quantization method. A transformers that knows none of the
name "rankfold" would go on and fill the layers that are not in the files at random, with a warning.
A second entry makes it fail instead, with rankfold's name in the message: it is said to be the name
of the file with the weights, and is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from rankfold.plan.plan import LayerPlan, Plan

METHOD = "rankfold"
ATTRIBUTE = "quantization_config"
VERSION = 1
FILE = "transformers_weights"
"""The entry that names the file with the weights where it has not the usual name."""
NEEDED = (
    "this model was compressed by rankfold; install rankfold and import rankfold_transformers, "
    "then open it"
)
Names = Literal["file", "model"]
"""Whose names the tensors have: of transformers' files of such a model, or of the model's state."""
_DEFAULTS = LayerPlan(path="")


def entry(plans: Iterable[Mapping[str, Any]], names: Names) -> dict[str, Any]:
    """Return the entry of a compressed model.

    Args:
        plans: as `written` gives them, in order.
        names: whose they are, of tensors and in plans.
    """
    return {"quant_method": METHOD, "version": VERSION, "names": names, "plans": list(plans)}


def written(plan: Plan) -> dict[str, Any]:
    """Return the part of a plan that the structure is rebuilt by, and what people may ask for."""
    layers = [
        {
            name: value
            for name in ("path", "method", "ranks", "pivots", "op", "error", "params", "refit")
            if (value := msgspec.to_builtins(getattr(layer, name))) != getattr(_DEFAULTS, name)
        }
        for layer in plan.replaced
    ]
    return {"policy": plan.policy, "layers": layers}


def recorded(settings: Mapping[str, Any]) -> tuple[Sequence[Mapping[str, Any]], Names] | None:
    """Return the plans in a config.json and whose names they have; None where it has no plans."""
    entry = settings.get(ATTRIBUTE)
    if not isinstance(entry, Mapping) or entry.get("quant_method") != METHOD:
        return None
    names: Names = "model" if entry.get("names") == "model" else "file"
    return list(entry.get("plans", ())), names
