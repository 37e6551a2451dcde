"""A chain that was built, run on its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

        compiled = _compiled(layers)

        # Layers of a stack are applied one by one, to their parts of the input.
        def call(stacked: Array) -> Array:
            return np.stack(
                [
                    np.asarray(compiled([{k: v[index] for k, v in p.items()} for p in params], x))
                    for index, x in enumerate(stacked)
                ]
            )

        return form.run(call, x, built.stacks[0].count)


def _compiled(layers: tuple[nn.Module, ...]) -> Callable[[Sequence[Mapping[str, Any]], Any], Any]:
    """Return layers as a function of their parameters and an input.

    It is one compilation in place of one for each operation of each layer, and for layers alike.
    """
    try:
        hash(layers)
    except TypeError:  # a way to multiply that the user gave may be any object
        return jax.jit(partial(_output, layers))
    return partial(_alike, layers)


def _output(layers: tuple[nn.Module, ...], params: Sequence[Mapping[str, Any]], x: Any) -> Any:
    for layer, named in zip(layers, params, strict=True):
        x = layer.apply({"params": named}, x)
    return x


_alike = jax.jit(_output, static_argnums=0)
