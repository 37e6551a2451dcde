"""Interpolative stages as an NNX module; see `rankfold_jax.layouts.interpolative`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype as promoted

from rankfold_jax.layouts.interpolative import InterpolativeForm, multiplied


class Interpolative(nnx.Module):
    """A layer that passes some of its channels on.

    Args:
        form: of the layer, with its pivots.
        use_bias: whether it has a bias.
        dtype: of the computation; None for that of inputs and parameters.
        param_dtype: of the parameters.
        precision: of the product.
        kernel_init: gives T.
        promote_dtype: brings inputs and parameters to one dtype.
        preferred_element_type: that products are summed in.
        rngs: for the kernel.
    """

    def __init__(
        self,
        form: InterpolativeForm,
        *,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: Any = None,
        kernel_init: Callable[..., Any] = jax.nn.initializers.zeros,
        promote_dtype: Callable[..., Any] = promoted,
        preferred_element_type: Any = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.kernel = nnx.Param(kernel_init(rngs.params(), form.kernel_shape, param_dtype))
        bias = nnx.Param(jnp.zeros(form.bias_shape, param_dtype)) if use_bias else None
        self.bias = nnx.data(bias)
        self.form = form
        self.in_features = form.inputs
        self.out_features = form.outputs
        self.use_bias = use_bias
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.promote_dtype = promote_dtype
        self.preferred_element_type = preferred_element_type

    def __call__(self, inputs: Any, out_sharding: Any = None) -> Any:
        """Return (..., *outputs) of inputs with channels last."""
        kernel = self.kernel[...]
        bias = self.bias[...] if self.bias is not None else None
        inputs, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        product = partial(multiplied, precision=self.precision, dtype=self.preferred_element_type)
        y = self.form.apply(inputs, kernel, bias, product)
        if out_sharding is None:
            return y
        return jax.sharding.reshard(y, out_sharding)  # type: ignore[no-untyped-call]  # JAX's own
