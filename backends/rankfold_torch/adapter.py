"""`TorchAdapter`: what the core asks of PyTorch."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from rankfold.contracts import Trace
from rankfold.errors import RankfoldError, Refused
from rankfold.hookspecs import LayerRule
from rankfold.ops import Array, Chain, Conv, ConvTranspose, Embedding, Linear, Op
from rankfold.registry import registry, resolve
from rankfold_torch import layers, tracing, weights
from rankfold_torch.refusals import (
    Surroundings,
    check_class,
    check_parts,
    check_root,
    check_state,
    is_quantized,
)

_MATRIX_AXES = 2


class TorchAdapter:
    """Reads, builds and replaces layers of a `torch.nn.Module`.

    An instance serves one call of plan, apply, compress or load, during which the model is
    unchanged until it is replaced.
    """

    def __init__(self) -> None:
        self._surroundings: Callable[[nn.Module], Surroundings] = cache(Surroundings)

    def layers(self, model: nn.Module) -> Mapping[str, str]:
        """Stock layers, and any other module that holds a matrix or a kernel of its own."""
        check_root(model)
        return {path: type(module).__name__ for path, module in self._found(model).items()}

    def size(self, model: nn.Module) -> int:
        """The number of parameters, shared ones counted once."""
        return sum(p.numel() for p in model.parameters() if not nn.parameter.is_lazy(p))

    def aliases(self, model: nn.Module, path: str) -> tuple[str, ...]:
        """The further paths of a module that stands in several places."""
        module = model.get_submodule(path)
        return tuple(
            other
            for other, found in model.named_modules(remove_duplicate=False)
            if found is module and other != path
        )

    def read(self, model: nn.Module, path: str) -> Op:
        """The layer at a path as an op; refused for what it is or for what surrounds it."""
        module = model.get_submodule(path)
        rule = self._rule(module)
        if rule is None:
            check_class(module)
        check_state(module)
        if rule is None:
            check_parts(module)
        self._surroundings(model).check(path, module)
        if rule is None:
            return layers.read(module)
        op = _ruled(rule.read, module)
        if isinstance(op, (Linear, Conv, ConvTranspose, Embedding)):
            return op
        raise Refused(f"the layer rule {rule.read!r} gave {type(op).__name__}, not an op")

    def trace(self, model: nn.Module, inputs: Any) -> Trace:
        """One forward pass in eval mode without gradients."""
        check_root(model)
        return tracing.trace(model, self._found(model), inputs)

    def build(self, model: nn.Module, path: str, chain: Chain) -> nn.Module:
        """An `nn.Sequential` of stock layers."""
        module = model.get_submodule(path)
        rule = self._rule(module)
        if rule is None or rule.build is None:
            return layers.build(chain, module)
        built: nn.Module = _ruled(rule.build, chain, module)
        return built

    def run(self, module: nn.Module, x: Array) -> Array:
        """The module's output, computed in float64."""
        return layers.run(module, x)

    def precision(self, model: nn.Module, path: str) -> float:
        """Machine epsilon of the layer's dtype."""
        dtype = next(model.get_submodule(path).parameters(recurse=False)).dtype
        return torch.finfo(dtype).eps

    def replace(
        self, model: nn.Module, modules: Mapping[str, nn.Module], *, inplace: bool
    ) -> nn.Module:
        """Swaps layers by identity, so that shared modules stay shared.

        The copy never copies the layers that are replaced.
        """
        new = {id(model.get_submodule(path)): module for path, module in modules.items()}
        if not inplace:
            _check_closures(model)
            memo: dict[int, Any] = {**new, **_computed(model)}
            try:
                copied: nn.Module = copy.deepcopy(model, memo)
            except Exception as error:  # whatever the copied attributes raise
                raise RankfoldError(
                    f"the model cannot be copied ({error}); pass inplace=True to change it itself"
                ) from error
            return copied
        if id(model) in new:
            raise RankfoldError("a model that is a single layer cannot be replaced in place")
        seen: set[int] = set()
        for owner in list(model.modules()):
            _swapped(vars(owner), new, seen)
        return model

    def save_weights(self, model: nn.Module, file: Path) -> None:
        """Every parameter and persistent buffer, tied ones once."""
        weights.save_weights(model, file)

    def load_weights(self, model: nn.Module, file: Path) -> nn.Module:
        """Fills the model after checking names, shapes and dtypes."""
        weights.load_weights(model, file)
        return model

    def _found(self, model: nn.Module) -> dict[str, nn.Module]:
        return {
            path: module
            for path, module in model.named_modules()
            if isinstance(module, (*layers.KINDS, LazyModuleMixin))
            or is_quantized(module)
            or self._rule(module) is not None
            or any(_is_matrix(p) for p in module._parameters.values())
        }

    @staticmethod
    def _rule(module: nn.Module) -> LayerRule | None:
        if type(module) in layers.KINDS:
            return None
        for rule in registry().rules:
            name, _, cls = rule.layer.partition(":")
            if rule.adapter != "torch" or name not in sys.modules:
                continue
            if type(module) is getattr(sys.modules[name], cls, None):
                return rule
        return None


def _is_matrix(parameter: torch.Tensor | None) -> bool:
    if parameter is None or nn.parameter.is_lazy(parameter):
        return parameter is not None
    return sum(size > 1 for size in parameter.shape) >= _MATRIX_AXES


def _check_closures(model: nn.Module) -> None:
    """Refuses to copy functions that hold a module of the model by closure: they would keep it."""
    own = {id(module) for module in model.modules()}
    for path, owner in model.named_modules():
        for name, value in vars(owner).items():
            if not inspect.isfunction(value):
                continue
            for held in inspect.getclosurevars(value).nonlocals.values():
                if id(held) in own:
                    where = f"{path}.{name}".lstrip(".")
                    raise RankfoldError(
                        f"the function {where!r} of the model holds one of its modules by closure, "
                        "which a copy would go on calling; pass inplace=True"
                    )


def _computed(model: nn.Module) -> dict[int, torch.Tensor]:
    """Copies of tensors with a history, which cannot be deep-copied; forward makes them anew."""
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }


def _ruled(target: str, *arguments: Any) -> Any:
    try:
        function: Callable[..., Any] = resolve(target)
        return function(*arguments)
    except Refused:
        raise
    except Exception as error:  # a plugin's fault must not stop the rest
        raise Refused(f"the layer rule {target!r} failed: {error!r}") from error


def _swapped(value: Any, new: Mapping[int, nn.Module], seen: set[int]) -> Any:
    """A value with modules replaced by identity, in dicts, lists, tuples and sets within it too.

    Dicts and lists are changed in place; a tuple or a set that holds such a module is made anew.
    """
    if id(value) in new:
        return new[id(value)]
    if id(value) in seen or not isinstance(value, (dict, list, tuple, set)):
        return value
    seen.add(id(value))
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in list(items):
            changed = _swapped(item, new, seen)
            if changed is not item:
                value[key] = changed
        return value
    changed_items = [_swapped(item, new, seen) for item in value]
    if all(a is b for a, b in zip(changed_items, value, strict=True)):
        return value
    named = hasattr(value, "_fields")
    return type(value)(*changed_items) if named else type(value)(changed_items)
