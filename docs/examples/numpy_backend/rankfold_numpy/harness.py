"""What the conformance kit must be told about the framework."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from rankfold.ops import Conv, Linear, Op, geometry
from rankfold.testing import Harness, Unsupported
from rankfold_numpy.adapter import NumpyAdapter, arrays, walk
from rankfold_numpy.framework import Array, Conv1D, Dense, Model


class NumpyHarness(Harness):
    """Makes models from ops, and runs them."""

    dtypes = ("float64", "float32")
    channels_last = False

    def adapter(self) -> NumpyAdapter:
        """A fresh adapter."""
        return NumpyAdapter()

    def model(self, ops: Sequence[Op], dtype: str = "float32") -> Model:
        """A native layer for each op."""
        return Model([self._layer(op, dtype) for op in ops])

    def call(self, model: Model, x: Array) -> Array:
        """The output, with the channels where the op has them."""
        y = model(self.inputs(x))
        return np.moveaxis(y, -1, 1) if self.channels_last else y

    def inputs(self, x: Array, dtype: str = "float32") -> Array:
        """The framework wants channels last."""
        x = np.moveaxis(x, 1, -1) if self.channels_last else x
        return x.astype(dtype)

    def state(self, model: Model) -> dict[str, Array]:
        """A copy of every array."""
        return {name: array.copy() for name, array in arrays(model).items()}

    def shared(self, op: Op) -> Model:
        """One layer, applied twice."""
        layer = self._layer(op, "float32")
        return Model([layer, layer])

    def tied(self, op: Op) -> Model:
        """Two layers with one kernel."""
        layer = self._layer(op, "float32")
        return Model([layer, copy.copy(layer)])

    def set_training(self, model: Model, training: bool) -> None:
        """Every layer has a mode of its own."""
        for _, layer in walk(model):
            layer.training = training

    def training(self, model: Model) -> list[bool]:
        """The modes of all layers."""
        return [layer.training for _, layer in walk(model)]

    def _layer(self, op: Op, dtype: str) -> Dense | Conv1D:
        self.channels_last = isinstance(op, Conv)
        bias = None if op.bias is None else op.bias.astype(dtype)
        if isinstance(op, Linear):
            return Dense(op.weight.T.astype(dtype), bias)
        if not isinstance(op, Conv) or op.weight.ndim != 3:
            raise Unsupported(f"a layer for {type(op).__name__} of {op.weight.ndim - 2} axes")
        geo = geometry(op)
        if isinstance(geo.padding, str):
            raise Unsupported(f"padding {geo.padding!r}")
        return Conv1D(
            op.weight.transpose(2, 1, 0).astype(dtype),
            bias,
            geo.stride[0],
            geo.padding[0],
            geo.dilation[0],
            op.groups,
        )
