"""The layers of a PyTorch model: modules, and parameters that rules name, by their paths."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from rankfold.plugins.hookspecs import LayerRule
from rankfold.plugins.layer_rules import rule_for
from rankfold_torch.layers.low_rank_sequential import LowRankSequential
from rankfold_torch.layers.parameter_layers import ParameterLayer, is_matrix, names_in
from rankfold_torch.layers.stock import KINDS
from rankfold_torch.usage.refusals import is_quantized

NAME = "torch"
"""Name of the adapter, under which rules are declared."""


def layers_of(model: nn.Module) -> dict[str, nn.Module | ParameterLayer]:
    """Return the layers of a model by path.

    Layers are the stock ones, other modules that hold a matrix or a kernel, and parameters that a
    rule names.
    """
    layers: dict[str, nn.Module | ParameterLayer] = {}
    for path, module in model.named_modules():
        # A parameter rule takes over the whole module: its parameters are the layers, and not the
        # module itself, even if that is a subclass of a stock layer.
        names = names_in(module, NAME)
        if names is not None:
            for name, parameter in module._parameters.items():
                if name in names and is_matrix(parameter):
                    layers[f"{path}.{name}".lstrip(".")] = ParameterLayer(module, name)
        elif _is_layer(module):
            layers[path] = module
    return layers


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a model that are modules, by path."""
    pairs = layers_of(model).items()
    return {path: layer for path, layer in pairs if not isinstance(layer, ParameterLayer)}


def rule_of(module: nn.Module) -> LayerRule | None:
    """Return the rule by which a module is read; None for stock layers and where there is none."""
    # By exact type: a rule may be for a subclass of nn.Linear, not for nn.Linear itself.
    return None if type(module) in KINDS else rule_for(NAME, type(module))


def paths_by_module(model: nn.Module) -> Mapping[int, list[str]]:
    """Return all paths of each module, by its identity."""
    paths: dict[int, list[str]] = {}
    # `named_modules` leaves out repetitions unless told otherwise.
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    return paths


def stages_of(model: nn.Module) -> dict[str, list[str]]:
    """Return the paths of the stock layers in each chain of a model, by path of the chain."""
    return {
        path: [
            f"{path}.{name}".lstrip(".")
            for name, stage in module.named_children()
            if isinstance(stage, KINDS)
        ]
        for path, module in model.named_modules()
        if isinstance(module, LowRankSequential)
    }


def _is_layer(module: nn.Module) -> bool:
    return (
        # Modules that will be refused are layers as well, so that the plan can give the reason.
        isinstance(module, (*KINDS, LazyModuleMixin))
        or is_quantized(module)
        or rule_of(module) is not None
        or any(is_matrix(p) for p in module._parameters.values())
    )
