from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from tests.conformance.test_nnx import ZEROS, FlaxHarness, kernel_of, options_of

import rankfold as rf
from rankfold.adapters.base import Adapter
from rankfold.ops import Op, channels
from rankfold.testing import Harness
from rankfold.testing.suite import AdapterSuite
from rankfold_jax.linen.adapter import LinenAdapter


def layer(op: Op, dtype: Any) -> nn.Module:
    out, into = channels(op)
    if isinstance(op, rf.Embedding):
        return nn.Embed(into, out, param_dtype=dtype, embedding_init=ZEROS)
    options: dict[str, Any] = {"use_bias": op.bias is not None, "param_dtype": dtype}
    options["kernel_init"] = ZEROS
    if isinstance(op, rf.Linear):
        return nn.Dense(out, **options)
    kind = nn.ConvTranspose if isinstance(op, rf.ConvTranspose) else nn.Conv
    return kind(out, op.weight.shape[2:], **options_of(op), **options)


def params_of(op: Op, dtype: Any) -> dict[str, jax.Array]:
    name = "embedding" if isinstance(op, rf.Embedding) else "kernel"
    held = {name: jax.device_put(kernel_of(op).astype(dtype))}
    if op.bias is not None:
        held["bias"] = jax.device_put(op.bias.astype(dtype))
    return held


class Twice(nn.Module):
    layer: nn.Module

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer(self.layer(x))


class LinenHarness(FlaxHarness):
    def adapter(self) -> Adapter:
        return LinenAdapter()

    def model(self, ops: Sequence[Op], dtype: str = "float32") -> nn.Module:
        self.looked_at(ops)
        params = {f"layers_{i}": params_of(op, dtype) for i, op in enumerate(ops)}
        return nn.Sequential([layer(op, dtype) for op in ops]).bind({"params": params})

    def state(self, model: nn.Module) -> dict[str, np.ndarray]:
        flat = flatten_dict(model.variables["params"], sep=".")
        return {name: np.array(value) for name, value in flat.items()}

    def shared(self, op: Op) -> nn.Module:
        self.looked_at([op])
        return Twice(layer(op, "float32")).bind({"params": {"layer": params_of(op, "float32")}})

    def gradients(self, model: nn.Module, x: np.ndarray) -> list[np.ndarray]:
        module, variables = model.unbind()

        def loss(variables: Any) -> jax.Array:
            return (module.apply(variables, self.inputs(x)) ** 2).sum()

        grads = jax.jit(jax.grad(loss))(variables)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]

    def compiled(self, model: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
        module, variables = model.unbind()
        fast = jax.jit(module.apply)

        def call(x: np.ndarray) -> np.ndarray:
            y = np.asarray(fast(variables, self.inputs(x)))
            return np.moveaxis(y, -1, 1) if self.convolution else y

        return call


# For all checks: what these compress alike is compressed once.
HARNESS = LinenHarness()


@pytest.mark.usefixtures("few_sweeps")
class TestLinen(AdapterSuite):
    @pytest.fixture
    def harness(self) -> Harness:
        return HARNESS
