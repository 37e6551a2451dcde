"""The adapter: between the framework's layers and rankfold's ops."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rankfold.errors import RankfoldError, Refused
from rankfold.ops import Chain, Conv, Linear, Op, geometry
from rankfold.plugins import Extent, Trace
from rankfold_numpy.framework import Array, Conv1D, Dense, Model


def walk(model: Model, prefix: str = "") -> Iterator[tuple[str, Dense | Conv1D]]:
    """Every layer with its path, shared ones each time."""
    for index, layer in enumerate(model.layers):
        if isinstance(layer, Model):
            yield from walk(layer, f"{prefix}{index}.")
        else:
            yield f"{prefix}{index}", layer


def arrays(model: Model) -> dict[str, Array]:
    """Every array by name, shared and tied ones once."""
    by_name: dict[str, Array] = {}
    seen: set[int] = set()
    for path, layer in walk(model):
        for name in ("kernel", "bias"):
            array = getattr(layer, name)
            if array is not None and id(array) not in seen:
                seen.add(id(array))
                by_name[f"{path}.{name}"] = array
    return by_name


class NumpyAdapter:
    """What rankfold asks of the framework; an instance serves one call."""

    def layers(self, model: Model) -> dict[str, str]:
        """Path and class name of each layer, shared ones once."""
        first: dict[int, tuple[str, str]] = {}
        for path, layer in walk(model):
            first.setdefault(id(layer), (path, type(layer).__name__))
        return dict(first.values())

    def size(self, model: Model) -> int:
        """The number of parameters."""
        return sum(array.size for array in arrays(model).values())

    def aliases(self, model: Model, path: str) -> tuple[str, ...]:
        """The further paths of a shared layer."""
        layer = dict(walk(model))[path]
        return tuple(name for name, same in walk(model) if same is layer and name != path)

    def read(self, model: Model, path: str) -> Op:
        """The layer as an op; tied layers are refused."""
        layer = dict(walk(model))[path]
        for name, other in walk(model):
            if other is not layer and other.kernel is layer.kernel:
                raise Refused(f"tied: its kernel is also that of {name!r}")
        if isinstance(layer, Dense):
            return Linear(np.ascontiguousarray(layer.kernel.T), layer.bias)
        return Conv(
            np.ascontiguousarray(layer.kernel.transpose(2, 1, 0)),
            layer.bias,
            stride=layer.stride,
            padding=(layer.padding,),
            dilation=layer.dilation,
            groups=layer.groups,
        )

    def trace(self, model: Model, inputs: Array) -> Trace:
        """One forward pass that notes the shape of every layer's input.

        Layers follow on each other, so the last one gives the output of the model.
        """
        extents: dict[str, tuple[Extent, ...]] = dict.fromkeys(self.layers(model), ())
        names = {id(dict(walk(model))[path]): path for path in extents}
        x, outputs = inputs, frozenset[str]()
        for _, layer in walk(model):
            path = names[id(layer)]
            extents[path] = (*extents[path], x.shape[:-1])
            outputs = frozenset({path})
            try:
                x = layer(x)
            except ValueError as error:
                raise RankfoldError(f"inputs: layer {path!r} fails on them: {error}") from error
        return Trace(extents, {}, outputs=outputs)

    def build(self, model: Model, path: str, chain: Chain) -> Model:
        """A small model of the framework's own layers, in the dtype and mode of the layer."""
        layer = dict(walk(model))[path]
        return Model([self._layer(op, layer) for op in chain])

    def run(self, module: Model, x: Array) -> Array:
        """The module's output in float64, with the channels where the op has them."""
        double = copy.deepcopy(module)
        for _, layer in walk(double):
            layer.kernel = layer.kernel.astype(np.float64)
            layer.bias = None if layer.bias is None else layer.bias.astype(np.float64)
        convolution = isinstance(module.layers[0], Conv1D)
        y = double(np.moveaxis(x, 1, -1) if convolution else x)
        return np.moveaxis(y, -1, 1) if convolution else y

    def precision(self, model: Model, path: str) -> float:
        """Machine epsilon of the layer's dtype."""
        return float(np.finfo(dict(walk(model))[path].kernel.dtype).eps)

    def replace(self, model: Model, modules: Mapping[str, Model], *, inplace: bool) -> Model:
        """The model with modules in place of layers."""
        layers = dict(walk(model))
        memo = {id(layers[path]): module for path, module in modules.items()}
        target = model if inplace else copy.deepcopy(model, {**memo})
        if inplace:
            self._exchange(target, memo)
        return target

    def save_weights(self, model: Model, file: Path) -> None:
        """Every array, once."""
        save_file({name: np.ascontiguousarray(a) for name, a in arrays(model).items()}, file)

    def load_weights(self, model: Model, file: Path, *more: Path) -> Model:
        """Fills the model after checking every name, shape and dtype."""
        stored: dict[str, Array] = {}
        for part in (file, *more):
            try:
                stored |= load_file(part)
            except (OSError, SafetensorError) as error:
                raise RankfoldError(f"{str(part)!r} cannot be read: {error}") from None
        filled = arrays(model)
        for name in {*filled, *stored}:
            wanted, there = (
                (a[name].shape, a[name].dtype) if name in a else None for a in (filled, stored)
            )
            if wanted != there:
                raise RankfoldError(f"{str(file)!r}: {name!r} is {there}, not {wanted}")
        for name, array in filled.items():
            array[...] = stored[name]
        return model

    @staticmethod
    def _layer(op: Op, like: Dense | Conv1D) -> Dense | Conv1D:
        dtype = like.kernel.dtype
        bias = None if op.bias is None else np.array(op.bias, dtype)
        if isinstance(op, Linear):
            return Dense(np.array(op.weight.T, dtype), bias, like.training)
        if not isinstance(op, Conv) or op.weight.ndim != 3:
            raise Refused(f"the framework has no {type(op).__name__} of {op.weight.ndim - 2} axes")
        geo = geometry(op)
        if isinstance(geo.padding, str) or op.padding_mode != "zeros":
            raise Refused(f"the framework has no padding {geo.padding!r} in {op.padding_mode!r}")
        return Conv1D(
            np.array(op.weight.transpose(2, 1, 0), dtype),
            bias,
            geo.stride[0],
            geo.padding[0],
            geo.dilation[0],
            op.groups,
            like.training,
        )

    def _exchange(self, model: Model, memo: Mapping[int, Model]) -> None:
        for index, layer in enumerate(model.layers):
            if id(layer) in memo:
                model.layers[index] = memo[id(layer)]
            elif isinstance(layer, Model):
                self._exchange(layer, memo)
