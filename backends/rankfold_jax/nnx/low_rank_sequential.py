"""Replacement of an NNX layer: an `nnx.Sequential` that still describes the layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rankfold.errors import RankfoldError
from rankfold_jax.layouts import chain_reader as chains
from rankfold_jax.layouts.stock_layers import OPTIONS
from rankfold_jax.nnx.layer_classes import ARRAYS, CONSTANTS, kernel_name

PLAIN = ("shape", "dtype", "ndim", "size")
"""Names of what can be asked of an array that has no values."""
_SHAPE = "dense_shape"
_DATA = (nnx.Variable, nnx.Pytree, jax.Array, np.ndarray)


class AbsentKernel:
    """Kernel of a layer that was replaced, as far as it is known without values.

    Args:
        label: its name in the layer.
        shape: as the layer had it.
        dtype: of the stages that stand in its place.

    Raises:
        RankfoldError: something is asked of it that needs values.
    """

    def __init__(self, label: str, shape: tuple[int, ...], dtype: Any) -> None:
        self.label, self.shape, self.dtype = label, shape, dtype
        self.ndim, self.size = len(shape), math.prod(shape)

    def __getattr__(self, name: str) -> Any:
        """Raise an error: the values are not there."""
        # `copy`, `pickle` and `hasattr` look for methods that are no use of the values.
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._no_values(name)

    def __repr__(self) -> str:
        """Return a text with label, shape and dtype."""
        return f"<{self.label} of a compressed layer: {self.shape}, {self.dtype}>"

    def _no_values(self, use: str) -> RankfoldError:
        return RankfoldError(
            f"the {self.label} {self.shape} of a compressed layer has no values, which {use!r} "
            "needs: they are in its stages, layer.layers[0] and so on; or compress with exclude= "
            "for this layer"
        )


def _needs_values(name: str) -> Any:
    def method(self: AbsentKernel, *args: Any, **kwargs: Any) -> Any:
        raise self._no_values(name)

    return method


_BINARY = ("add", "sub", "mul", "matmul", "truediv", "pow")
for _name in (
    *("getitem", "setitem", "iter", "float", "bool", "neg", "abs", "array", "jax_array"),
    *(f"{_side}{_operator}" for _operator in _BINARY for _side in ("", "r")),
):
    setattr(AbsentKernel, f"__{_name}__", _needs_values(f"__{_name}__"))


class LowRankSequential(nnx.Sequential):
    """Layers of a chain, called as the one layer that they replace.

    It goes on telling what the layer was made with, and shape and dtype of its kernel. An option,
    such as its dtype, is that of the stages and can be set on both; sizes and geometry cannot.

    Args:
        layers: stock NNX layers.

    Raises:
        RankfoldError: a constant of the layer, its kernel or its bias is set.
    """

    def __getattr__(self, name: str) -> Any:
        """Return the kernel as far as it is known, or the bias, which the last stage has.

        Raises:
            AttributeError: there is no such attribute, or no answer: of a stack, whose layers are
                seen with fewer axes under vmap, or of stages that are no stock layers.
        """
        label, shape = vars(self).get(_SHAPE, ("", ()))
        stages: list[Any] = list(vars(self).get("layers", ()))
        if label and stages and name == "bias":
            return getattr(stages[-1], name)
        if label and stages and name == label:
            kernel = getattr(stages[0], kernel_name(stages[0]))
            return AbsentKernel(label, shape, kernel.dtype)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute: hand options on to the stages, refuse what would have no effect."""
        now = vars(self)  # Flax puts a graph together beneath this, by `object.__setattr__`
        if (name in ARRAYS and value is not now.get(name)) or (
            name in CONSTANTS and name in now and not _same(now[name], value)
        ):
            stages = list(now.get("layers", ()))
            if name not in OPTIONS:
                kinds = (type(stage).__name__ for stage in stages)
                raise chains.fixed(f"{name} of a compressed layer", kinds)
            # An option set on the layer (a dtype, say) is meant for what computes.
            for stage in stages:
                if hasattr(stage, name):
                    setattr(stage, name, value)
        super().__setattr__(name, value)

    def __call__(  # type: ignore[override]  # one input, as the layer it replaces has
        self, inputs: Any, *, out_sharding: Any = None, **options: Any
    ) -> Any:
        """Apply the layers one after the other; `out_sharding` is for the output of the last."""
        layers: list[Any] = list(self.layers)
        # `nnx.Sequential` hands keyword arguments to the first layer alone.
        *before, last = layers
        for layer in before:
            inputs = layer(inputs, **options)
        if out_sharding is not None:
            options["out_sharding"] = out_sharding
        return last(inputs, **options)

    def attend(self, query: Any, *, out_sharding: Any = None) -> Any:
        """Multiply by the transposed table that the chain stands for, as `Embed.attend` does.

        Raises:
            AttributeError: the chain replaces another layer than an Embed.
        """
        layers: list[Any] = list(self.layers)
        table, *behind = layers
        # The table of the chain is table · k1 · k2 ...: its transpose is applied from the last
        # factor on.
        for layer in reversed(behind):
            if isinstance(layer, nnx.Linear):
                arrays = (query, layer.kernel[...])
                query, kernel = layer.promote_dtype(arrays, dtype=layer.dtype)
            else:  # a chain of its own
                # Applied to the identity it gives its matrix.
                kernel = layer(jnp.eye(layer.in_features, dtype=query.dtype))
            query = jnp.dot(query, kernel.T)
        return table.attend(query, out_sharding=out_sharding)


def chained(
    stages: Sequence[Any], module: nnx.Module, shape: tuple[int, ...] | None = None
) -> LowRankSequential:
    """Return stock layers as one module for the place of a layer, with its other attributes.

    Args:
        stages: the stock layers.
        module: the layer.
        shape: of its kernel; None where that is a stack or a layer rule reads it.
    """
    chain = LowRankSequential(*stages)
    for name, value in vars(module).items():
        # Plain attributes alone: arrays and modules of the layer are what has been replaced.
        if not name.startswith("_") and not isinstance(value, _DATA) and not hasattr(chain, name):
            setattr(chain, name, value)
    if shape is not None:
        setattr(chain, _SHAPE, (kernel_name(module), shape))
    return chain


def _same(before: Any, after: Any) -> bool:
    # Of one type first: 1 == True, and arrays compare element by element.
    return before is after or (type(before) is type(after) and bool(before == after))
