"""A chain that was built, run on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold_jax.linen.layers import in_double, make
from rankfold_jax.linen.params import Built, double


def run_chain(built: Built, x: Array) -> Array:
    """Return the output of a chain, computed in float64.

    Args:
        built: the chain; each stage runs as a module of its own, without the model.
        x: the input of the layer.
    """
    form = built.layer.form
    if built.ruled is not None:
        with jax.enable_x64(True):
            return built.ruled.run(built.specs, built.params, x)
    assert not isinstance(form, Refused)
    with jax.enable_x64(True):
        layers = tuple(in_double(make(spec, built.layer.module, None)) for spec in built.specs)
        params = [
            {
                # A boolean for an index: stack 0 is the kernel's, 1 the bias's.
                key: built.stacks[key == "bias"].to_front(double(value))
                for key, value in named.items()
            }
            for named in built.params.values()
        ]

        # Layers of a stack are applied one by one, to their parts of the input.
        def call(stacked: Array) -> Array:
            return np.stack(
                [
                    np.asarray(
                        _output(layers, [{k: v[index] for k, v in p.items()} for p in params], x)
                    )
                    for index, x in enumerate(stacked)
                ]
            )

        return form.run(call, x, built.stacks[0].count)


# One compilation in place of one for each operation of each stage, and for layers alike.
@partial(jax.jit, static_argnums=0)
def _output(layers: tuple[nn.Module, ...], params: Sequence[Mapping[str, Any]], x: Any) -> Any:
    for layer, named in zip(layers, params, strict=True):
        x = layer.apply({"params": named}, x)
    return x
