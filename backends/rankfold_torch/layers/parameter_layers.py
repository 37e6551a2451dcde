"""Layers that are one parameter of a module: matrices, or stacks of them, that its forward uses.

No module can take the place of such a parameter. Its factors do, as the originals of a
parametrization (`torch.nn.utils.parametrize`) that multiplies them out when the parameter is read.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from rankfold.errors import RankfoldError, Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Linear
from rankfold.plugins.registry import registry
from rankfold.state.transaction import Changes
from rankfold_torch.layers.parameter_memory import parameter
from rankfold_torch.layers.stock import to_array
from rankfold_torch.torch_internals import give_own_class

_FIRST = "original0"
_MATRIX_AXES = 2
"""Axes of more than one element that a parameter needs to be worth a decomposition."""
_REGISTRIES = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True, eq=False)
class Factors:
    """Factors in place of a parameter: (*stack, rows, columns) each, the first stage first."""

    tensors: tuple[nn.Parameter, ...]

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., stack · rows), the output for (..., stack · columns), in float64."""
        weight = multiplied(*(tensor.detach().double() for tensor in self.tensors))
        weight = weight.reshape(-1, *weight.shape[-2:])
        split = x.to(weight).reshape(*x.shape[:-1], len(weight), -1)
        return torch.einsum("...gi,goi->...go", split, weight).flatten(-2)


@dataclass(frozen=True, eq=False)
class ParameterLayer:
    """Parameter of a module as a layer.

    Attributes:
        module: that uses it.
        name: of the parameter.
    """

    module: nn.Module
    name: str

    @property
    def tensor(self) -> nn.Parameter:
        """Parameter of the module that is the layer."""
        tensor = self.module._parameters[self.name]
        assert tensor is not None
        return tensor

    def read(self) -> Linear:
        """Return the layer as an op."""
        weight = to_array(self.tensor)
        # A stack of matrices, each with rows of its own, is a block-diagonal layer: one group a
        # matrix.
        return Linear(weight.reshape(-1, weight.shape[-1]), groups=self._count)

    def build(self, chain: Chain) -> Factors:
        """Build factors from the stages of a chain.

        Raises:
            Refused: a product of matrices cannot express the chain.
        """
        stack = self.tensor.shape[:-2]
        factors = []
        for stage in chain:
            if (
                not isinstance(stage, Linear)
                or stage.groups != self._count
                or stage.bias is not None
            ):
                raise Refused("a parameter can only be a product of as many matrices as it holds")
            shape = (*stack, stage.weight.shape[0] // stage.groups, stage.weight.shape[1])
            factors.append(parameter(stage.weight.reshape(shape), self.tensor))
        return Factors(tuple(factors))

    def filled(self, weight: Array) -> nn.Parameter:
        """Build the parameter with other values."""
        return parameter(weight.reshape(tuple(self.tensor.shape)), self.tensor)

    def chain(self, small: nn.Module) -> Chain:
        """Return the chain of the factors that a compressed copy of the module has now.

        Raises:
            Refused: it has none.
        """
        if not parametrize.is_parametrized(small, self.name):
            raise Refused(f"its {self.name} is no product of factors")
        listed: nn.Module = small.parametrizations[self.name]  # type: ignore[index, assignment]
        arrays = [to_array(tensor) for tensor in listed.parameters(recurse=False)]
        return tuple(Linear(a.reshape(-1, a.shape[-1]), groups=self._count) for a in arrays)

    @property
    def _count(self) -> int:
        return math.prod(self.tensor.shape[:-2])


class Product(nn.Module):
    """Parametrization of a parameter by its factors.

    Args:
        factors: as `ParameterLayer.build` gives them.
    """

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self._factors: Factors | None = factors

    def forward(self, *factors: torch.Tensor) -> torch.Tensor:
        """Return the parameter (*stack, rows, columns)."""
        return multiplied(*factors)

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the factors, once: afterwards it is they that can be set.

        Raises:
            RankfoldError: the parameter is assigned to.
        """
        if self._factors is None:
            raise RankfoldError(
                f"a parameter of shape {tuple(weight.shape)} cannot be set: it is a product; set "
                f"its factors, parametrizations.<name>.{_FIRST} and so on"
            )
        # Registering calls this once to get the originals. Later calls come from assignments to
        # the parameter: no product of the given ranks need equal the value, so they are refused.
        factors, self._factors = self._factors, None
        return factors.tensors


def multiplied(first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """Multiply factors in the order of their stages: the last one is the leftmost."""
    for factor in others:
        first = factor @ first
    return first


def names_in(module: nn.Module, adapter: str) -> frozenset[str] | None:
    """Return the parameters that rules say are layers; None where no rule knows the class."""
    # `parametrize` gives a module a class of its own, by whose name no rule knows it.
    kind = parametrize.type_before_parametrizations(module)
    known = f"{kind.__module__}:{kind.__qualname__}"
    matching = [
        rule.names
        for rule in registry().parameter_rules
        if rule.adapter == adapter and fnmatchcase(known, rule.layer)
    ]
    return frozenset(name for names in matching for name in names) if matching else None


def parameter_at(model: nn.Module, path: str) -> ParameterLayer | None:
    """Return the parameter at the path of a layer; None where that is a module."""
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    # A scripted module has a wrapper for a dictionary here, which has no `get`.
    if name not in module._parameters or module._parameters[name] is None:
        return None
    return ParameterLayer(module, name)


def put(module: nn.Module, name: str, new: Factors | nn.Parameter) -> None:
    """Give a module factors or plain values in place of a parameter or of its factors."""
    # For this or another parameter of it. The class that comes with that is shared with copies.
    if parametrize.is_parametrized(module):
        give_own_class(module)
    if isinstance(new, Factors):
        parametrize.register_parametrization(module, name, Product(new), unsafe=True)
        return
    if parametrize.is_parametrized(module, name):
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    setattr(module, name, new)


def original(module: nn.Module, name: str, tensor: torch.Tensor) -> tuple[dict[str, Any], str, Any]:
    """Return the entry of a dictionary by which a module reads a tensor for what `put` gave it."""
    if parametrize.is_parametrized(module, name):
        product: nn.Module = module.parametrizations[name][0]  # type: ignore[index, assignment]
        return vars(product), "forward", lambda *factors: tensor
    return module._parameters, name, tensor


def prepare(module: nn.Module, new: Mapping[str, Factors | nn.Parameter], changes: Changes) -> None:
    """Prepare the changes that make a module what `put` makes it.

    Args:
        module: the module.
        new: by name of a parameter, what it is to have in its place.
        changes: to be made afterwards.
    """
    # `parametrize` changes a module in many steps, __class__ among them, and an interrupt between
    # two of them would leave a module that is neither parametrized nor plain. So it works on a
    # shadow that shares the tensors but has registries of its own. The changes then carry the
    # outcome over: contents of the registries (the dicts themselves stay, as others may hold
    # them), __class__, and the other attributes. Each of these the transaction can take back.
    shadow = _shadow(module)
    for name, item in new.items():
        put(shadow, name, item)
    values = dict(vars(shadow))
    for kind in _REGISTRIES:
        changes.contents(vars(module)[kind], values[kind])
        values[kind] = vars(module)[kind]
    changes.attribute(module, "__class__", type(shadow))
    changes.contents(vars(module), values)


def _shadow(module: nn.Module) -> nn.Module:
    """Return a module with the same tensors and attributes, but registries of its own."""
    shadow: nn.Module = object.__new__(type(module))
    vars(shadow).update(vars(module))
    for kind in _REGISTRIES:
        vars(shadow)[kind] = copy.copy(vars(module)[kind])
    # This child has registries that `parametrize` changes as well.
    listed = shadow._modules.get("parametrizations")
    if listed is not None:
        shadow._modules["parametrizations"] = _shadow(listed)
    return shadow


def empty(tensor: nn.Parameter) -> nn.Parameter:
    """Return a parameter like another one that takes no memory, to be replaced."""
    # One element, expanded to the shape by strides of 0.
    shell = torch.empty(1, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    return nn.Parameter(shell, requires_grad=tensor.requires_grad)


def is_matrix(parameter: torch.Tensor | None) -> bool:
    """Return whether a parameter has two axes or more."""
    if parameter is None or nn.parameter.is_lazy(parameter):
        # A lazy parameter has no shape to ask for, and is listed so that its refusal says so.
        return parameter is not None
    # Axes of one element are not counted: a (1, 1, d) position bias is a vector.
    return sum(size > 1 for size in parameter.shape) >= _MATRIX_AXES
