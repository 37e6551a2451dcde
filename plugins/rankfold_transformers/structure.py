"""The structure of a compressed model, built in a model that has no values yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from rankfold.adapters.capabilities import capabilities
from rankfold.plan.plan import Plan
from rankfold.plugins.registry import registry
from rankfold.storage.folder import modules_of
from rankfold.storage.saved_plan import VERSION, Saved
from rankfold_torch.layers.parameter_layers import Factors


@dataclass(frozen=True, eq=False)
class Exchange:
    """A chain in the place of a layer.

    Attributes:
        path: of the layer.
        owner: the module that held it.
        name: of the layer there.
        layer: that was replaced.
        chain: that stands there now.
    """

    path: str
    owner: nn.Module
    name: str
    layer: nn.Module
    chain: nn.Module


def restructured(model: nn.Module, plan: Plan) -> list[Exchange]:
    """Put chains without values in the places of the layers that a plan replaces.

    Raises:
        RankfoldError: the plan does not fit the model.
    """
    adapter = registry().adapter(model)
    if (recalling := capabilities(adapter).recalling) is not None:
        recalling.recall()  # the plan was made with a trace, which there is none of here
    # Noted before, for nothing tells afterwards which layer stood where.
    before = [
        (f"{path}.{name}".lstrip("."), owner, name, layer)
        for path, owner in model.named_modules()
        for name, layer in owner.named_children()
    ]
    with _readable(model):
        # As if it had been read from a folder; the files are transformers' concern.
        saved = Saved(rankfold=VERSION, files={}, plan=plan)
        modules = modules_of(_OnMeta(adapter), model, saved)
        adapter.replace(model, modules, inplace=True)
    return [
        Exchange(path, owner, name, layer, chain)
        for path, owner, name, layer in before
        if (chain := owner._modules[name]) is not layer and chain is not None
    ]


class _OnMeta:
    """An adapter whose modules have no values, so that no more than one of them takes memory."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def build(self, *arguments: Any) -> Any:
        """Build the module of the adapter, on the meta device."""
        built = self._adapter.build(*arguments)
        # Factors of a parameter are no module and have no `to`.
        if not isinstance(built, Factors):
            return built.to("meta")
        return replace(built, tensors=tuple(map(_without_values, built.tensors)))


def _without_values(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().to("meta"), requires_grad=tensor.requires_grad)


@contextmanager
def _readable(model: nn.Module) -> Iterator[None]:
    """Make layers without values readable: within, parameters are zeros that take no memory."""
    # Noted by their modules, for those that are replaced within are no longer in the model: their
    # blanks must not stay either, as whoever holds such a layer may fill it.
    blanks: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None and tensor.device.type == "meta":
                # One element with strides of 0, which rankfold knows for a blank weight: a layer
                # without values.
                zero = torch.zeros((), dtype=tensor.dtype, device="cpu").expand(tensor.shape)
                blank = nn.Parameter(zero, requires_grad=tensor.requires_grad)
                module._parameters[name] = blank
                blanks.append((module, name, blank, tensor))
    try:
        yield
    finally:
        for module, name, blank, tensor in blanks:
            if module._parameters.get(name) is blank:
                module._parameters[name] = tensor
