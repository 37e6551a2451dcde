"""Models without values, made from a config.json, and what they say of its checkpoint."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers import AutoConfig, initialization
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rankfold.errors import RankfoldError, Refused
from rankfold.ops import Op
from rankfold.ops.transforms import describe, without_geometry
from rankfold.plugins.registry import registry
from rankfold_transformers import config_entry
from rankfold_transformers.companions import CONFIG
from rankfold_transformers.file_names import FileNames

_WEIGHT = ".weight"


def model_of(settings: Mapping[str, Any]) -> Any | None:
    """Return the model of a config.json on the meta device; None where transformers has none.

    Nothing that lies beside the file is run: models with code of their own are not made.
    """
    known = {
        name: value
        for name, value in settings.items()
        if name not in (config_entry.ATTRIBUTE, config_entry.FILE)
    }
    return _model_of(json.dumps(known, sort_keys=True))


@lru_cache(maxsize=2)
def _model_of(text: str) -> Any | None:
    settings = json.loads(text)
    kind, classes = settings.get("model_type"), settings.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    cls = getattr(transformers, name, None) if isinstance(name, str) else None
    if not isinstance(cls, type) or "auto_map" in settings or kind not in CONFIG_MAPPING:
        return None
    # Some models make numbers of tensors of theirs as they are built, which one without values
    # cannot.
    safely = getattr(initialization, "meta_device_safe_creation_ops", nullcontext)
    try:
        with warnings.catch_warnings(), torch.device("meta"), safely():
            warnings.simplefilter("ignore")
            return cls(_configuration(text))
    # A configuration from elsewhere may be of another version, or its model may need a package
    # that is not installed. Then names and shapes have to do.
    except Exception:
        return None


def _configuration(text: str) -> Any:
    """Read a configuration as transformers does, which is from a folder."""
    with TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_text(text)
        return AutoConfig.from_pretrained(folder)


def refusals_of(model: Any, layers: Mapping[str, tuple[str, Op]]) -> dict[str, str]:
    """Say which layers of a checkpoint a model does not let go, and why.

    Args:
        model: of transformers, without values.
        layers: for each path in the files the name of the weight and the op, without values.
    """
    adapter = registry().adapter(model)
    known, names = adapter.layers(model), FileNames(model)
    renamed = names.of(weight for weight, _ in layers.values())
    refusals: dict[str, str] = {}
    for path, (weight, op) in layers.items():
        name, pattern = renamed[weight]
        # A parameter that is a layer has its own name for a path.
        layer = name if path == weight else name.removesuffix(_WEIGHT)
        if pattern is not None:
            reason = "transformers makes other tensors of it when it loads the model"
        elif name not in names.state or layer not in known:
            reason = f"no layer of {type(model).__name__}"
        else:
            reason = _refusal(adapter, model, layer, op)
        if reason:
            refusals[path] = reason
    return refusals


def _refusal(adapter: Any, model: Any, path: str, op: Op) -> str:
    """Return why a layer of a model cannot be replaced; "" where it can."""
    try:
        actual = adapter.structure(model, path)
    except (Refused, RankfoldError) as refused:
        return str(refused)
    # By its shape alone a layer may be taken for another one: a table, a grouped convolution.
    if describe(without_geometry(actual)) != describe(without_geometry(op)):
        return f"by its name and shape a {describe(op)}, but a {describe(actual)} in the model"
    if (actual.bias is None) != (op.bias is None):
        return "its bias has a name in the files that is not that of a bias of it"
    return ""
