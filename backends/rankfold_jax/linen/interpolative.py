"""Interpolative stages as a Linen module; see `rankfold_jax.layouts.interpolative`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype as promoted

from rankfold_jax.layouts.interpolative import InterpolativeForm, multiplied


class Interpolative(nn.Module):
    """A layer that passes some of its channels on.

    Attributes:
        form: of the layer, with its pivots.
        use_bias: whether it has a bias.
        dtype: of the computation; None for that of inputs and parameters.
        param_dtype: of the parameters.
        precision: of the product.
        kernel_init: gives T.
        bias_init: gives the bias.
        promote_dtype: brings inputs and parameters to one dtype.
        preferred_element_type: that products are summed in.
    """

    form: InterpolativeForm
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()
    promote_dtype: Callable[..., Any] = promoted
    preferred_element_type: Any = None

    @nn.compact
    def __call__(self, inputs: Any) -> Any:
        """Return (..., *outputs) of inputs with channels last."""
        form = self.form
        kernel = self.param("kernel", self.kernel_init, form.kernel_shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, form.bias_shape, self.param_dtype)
        inputs, kernel, bias = self.promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        product = partial(multiplied, precision=self.precision, dtype=self.preferred_element_type)
        return form.apply(inputs, kernel, bias, product)
