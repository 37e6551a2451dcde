from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import rankfold as rf
from rankfold.adapters.base import Adapter
from rankfold.ops import Op, channels, geometry
from rankfold.testing import Harness, Unsupported
from rankfold.testing.suite import AdapterSuite
from rankfold_jax.nnx.adapter import NNXAdapter

# Overwritten at once: drawing random numbers would be compiled for each shape.
ZEROS = nnx.initializers.zeros


def kernel_of(op: Op) -> np.ndarray:
    weight = op.weight
    if isinstance(op, rf.Embedding):
        return weight
    if isinstance(op, rf.Linear):
        return weight.T
    if isinstance(op, rf.ConvTranspose):
        weight = weight[(slice(None), slice(None), *(slice(None, None, -1),) * (weight.ndim - 2))]
    return np.moveaxis(weight, (0, 1), (-1, -2))


def options_of(op: Any) -> dict[str, Any]:
    """What makes a convolution of Flax out of a convolution."""
    geo = geometry(op)
    options: dict[str, Any] = {"strides": geo.stride, "kernel_dilation": geo.dilation}
    if isinstance(op, rf.ConvTranspose):
        if op.groups > 1:
            raise Unsupported("grouped transposed convolutions")
        options["padding"] = [
            (r - 1 - low, r - 1 - high + extra)
            for r, (low, high), extra in zip(
                geo.reach, geo.padding, geo.output_padding, strict=True
            )
        ]
        return options
    names = {"same": "SAME", "same_lower": "SAME_LOWER"}
    padding = geo.padding
    options["padding"] = names[padding] if isinstance(padding, str) else list(padding)
    options["feature_group_count"] = op.groups
    return options


def layer(op: Op, dtype: Any) -> nnx.Module:
    out, into = channels(op)
    rngs = nnx.Rngs(0)
    if isinstance(op, rf.Embedding):
        made: Any = nnx.Embed(into, out, param_dtype=dtype, embedding_init=ZEROS, rngs=rngs)
        made.embedding[...] = jax.device_put(op.weight.astype(dtype))
        return made
    bias = {"use_bias": op.bias is not None, "param_dtype": dtype, "rngs": rngs}
    bias["kernel_init"] = ZEROS
    if isinstance(op, rf.Linear):
        made = nnx.Linear(into, out, **bias)
    else:
        kind = nnx.ConvTranspose if isinstance(op, rf.ConvTranspose) else nnx.Conv
        made = kind(into, out, op.weight.shape[2:], **options_of(op), **bias)
    made.kernel[...] = jax.device_put(kernel_of(op).astype(dtype))
    if op.bias is not None:
        made.bias[...] = jax.device_put(op.bias.astype(dtype))
    return made


class Tied(nnx.Module):
    def __init__(self, first: nnx.Linear, second: nnx.Linear) -> None:
        second.kernel = first.kernel
        self.first, self.second = first, second

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(self.first(x))


class FlaxHarness(Harness):
    """What NNX and Linen have in common: the layout of arrays, which depends on the first op."""

    dtypes = ("float32", "float16", "bfloat16")
    convolution = False

    def forward(self, model: Any, x: Any) -> Any:
        return model(x)

    def inputs(self, x: np.ndarray, dtype: str = "float32") -> jax.Array:
        x = np.moveaxis(x, 1, -1) if self.convolution else x
        return jax.device_put(x.astype(dtype) if x.dtype.kind == "f" else x)

    def call(self, model: Any, x: np.ndarray) -> np.ndarray:
        y = np.asarray(self.forward(model, self.inputs(x))).astype(np.float64)
        return np.moveaxis(y, -1, 1) if self.convolution else y

    def looked_at(self, ops: Sequence[Op]) -> None:
        self.convolution = isinstance(ops[0], rf.Conv | rf.ConvTranspose)


class NNXHarness(FlaxHarness):
    def adapter(self) -> Adapter:
        return NNXAdapter()

    def model(self, ops: Sequence[Op], dtype: str = "float32") -> nnx.Module:
        self.looked_at(ops)
        return nnx.Sequential(*(layer(op, dtype) for op in ops))

    def state(self, model: nnx.Module) -> dict[str, np.ndarray]:
        flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
        return {".".join(map(str, path)): np.array(v[...]) for path, v in flat}

    def shared(self, op: Op) -> nnx.Module:
        self.looked_at([op])
        once = layer(op, "float32")
        return nnx.Sequential(once, once)

    def tied(self, op: Op) -> nnx.Module:
        self.looked_at([op])
        return Tied(layer(op, "float32"), layer(op, "float32"))

    def gradients(self, model: nnx.Module, x: np.ndarray) -> list[np.ndarray]:
        grads = nnx.jit(nnx.grad(lambda m: (m(self.inputs(x)) ** 2).sum()))(model)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]

    def compiled(self, model: nnx.Module) -> Callable[[np.ndarray], np.ndarray]:
        fast = nnx.jit(lambda m, x: m(x))

        def call(x: np.ndarray) -> np.ndarray:
            y = np.asarray(fast(model, self.inputs(x)))
            return np.moveaxis(y, -1, 1) if self.convolution else y

        return call


# For all checks: what these compress alike is compressed once.
HARNESS = NNXHarness()


@pytest.mark.usefixtures("few_sweeps")
class TestNNX(AdapterSuite):
    @pytest.fixture
    def harness(self) -> Harness:
        return HARNESS
