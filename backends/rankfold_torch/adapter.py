"""`TorchAdapter`: what the core asks of PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from rankfold.calibration import Calibration
from rankfold.contracts import Trace, Visit
from rankfold.errors import Refused
from rankfold.hookspecs import LayerRule
from rankfold.moments import LayerMoments
from rankfold.ops import Array, Chain, Conv, ConvTranspose, Embedding, Extent, Linear, Op
from rankfold.progress import Advance
from rankfold.reference import composed
from rankfold.registry import registry, resolve
from rankfold_torch import (
    following,
    layers,
    losses,
    moments,
    refilling,
    swapping,
    timing,
    tracing,
    weights,
)
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
        return layers.read(module) if rule is None else _read_by(rule, module)

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
        return swapping.replaced(model, modules, inplace=inplace)

    def save_weights(self, model: nn.Module, file: Path) -> None:
        """Every parameter and persistent buffer, tied ones once."""
        weights.save_weights(model, file)

    def load_weights(self, model: nn.Module, file: Path, *more: Path) -> nn.Module:
        """Fills the model after checking names, shapes and dtypes."""
        weights.load_weights(model, file, *more)
        return model

    def moments(
        self,
        model: nn.Module,
        calibration: Calibration,
        layers: Mapping[str, Op],
        rng: np.random.Generator,
        advance: Advance,
    ) -> Mapping[str, LayerMoments]:
        """One forward and backward pass per batch, with hooks on the layers."""
        return moments.moments(model, calibration, layers, rng, advance)

    def follow(
        self,
        model: nn.Module,
        calibration: Calibration,
        layers: Mapping[str, Op],
        visit: Visit,
        *,
        sequential: bool,
        rng: np.random.Generator,
    ) -> Mapping[str, float]:
        """Both runs are of the model itself, each in a thread of its own."""

        def build(path: str, chain: Chain) -> nn.Module:
            first, op = chain[0], layers[path]
            same = type(first) is type(op) and first.weight.shape == op.weight.shape
            if len(chain) == 1 and same:
                return self.refilled(model, path, first)
            return self.build(model, path, chain)

        return following.follow(
            model, calibration, layers, visit, build, sequential=sequential, rng=rng
        )

    def refilled(self, model: nn.Module, path: str, op: Op) -> nn.Module:
        """A copy of the layer alone."""
        module = model.get_submodule(path)
        rule = self._rule(module)
        return refilling.refilled(module, op, None if rule is None else partial(_read_by, rule))

    def expanded(self, model: nn.Module, small: nn.Module, paths: Sequence[str]) -> nn.Module:
        """A copy of the compressed model, with a copy of the layer in place of each chain."""
        modules = {}
        for path in paths:
            op = self.read(model, path)
            chain = layers.chain(small.get_submodule(path))
            modules[path] = self.refilled(model, path, composed(op, chain))
        return swapping.replaced(small, modules, inplace=False)

    def divergence(
        self, model: nn.Module, small: nn.Module, calibration: Calibration
    ) -> tuple[float, float]:
        """One forward pass of both models per batch."""
        return losses.divergence(model, small, calibration)

    def seconds(
        self, model: nn.Module, path: str, chains: Sequence[Chain], extents: Sequence[Extent]
    ) -> tuple[float, ...]:
        """Chains that cannot be built take forever."""
        built: list[nn.Module | None] = []
        for chain in chains:
            try:
                built.append(self.build(model, path, chain))
            except Refused:
                built.append(None)
        return timing.seconds(model.get_submodule(path), self.read(model, path), built, extents)

    def model_seconds(self, models: Sequence[nn.Module], inputs: Any) -> tuple[float, ...]:
        """Whole forward passes in eval mode without gradients."""
        return timing.model_seconds(models, inputs)

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


def _read_by(rule: LayerRule, module: nn.Module) -> Op:
    op = _ruled(rule.read, module)
    if isinstance(op, (Linear, Conv, ConvTranspose, Embedding)):
        return op
    raise Refused(f"the layer rule {rule.read!r} gave {type(op).__name__}, not an op")


def _is_matrix(parameter: torch.Tensor | None) -> bool:
    if parameter is None or nn.parameter.is_lazy(parameter):
        return parameter is not None
    return sum(size > 1 for size in parameter.shape) >= _MATRIX_AXES


def _ruled(target: str, *arguments: Any) -> Any:
    try:
        function: Callable[..., Any] = resolve(target)
        return function(*arguments)
    except Refused:
        raise
    except Exception as error:  # a plugin's fault must not stop the rest
        raise Refused(f"the layer rule {target!r} failed: {error!r}") from error
