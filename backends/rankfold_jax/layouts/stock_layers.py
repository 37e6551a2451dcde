"""Stock layers of Flax as far as NNX and Linen make and read them alike."""

from __future__ import annotations

import inspect
from collections.abc import Set
from functools import cache
from typing import Any

import jax.numpy as jnp
from jax import lax

from rankfold_jax.layouts.base import LayerLayout
from rankfold_jax.layouts.conv import ConvForm, TransposedForm
from rankfold_jax.layouts.dense import DenseForm, EinsumForm, EmbedForm
from rankfold_jax.layouts.depthwise import depthwise_conv
from rankfold_jax.layouts.padding import lax_padding, per_axis, reach_of, transposed_padding
from rankfold_jax.layouts.stacks import StackedAxes

OPTIONS = ("dtype", "param_dtype", "precision", "promote_dtype", "preferred_element_type")
"""Options that every layer of a chain has, too, if the layer replaced has them."""
PRODUCTS = (
    "dot_general",
    "dot_general_cls",
    "einsum_op",
    "conv_general_dilated",
    "conv_general_dilated_cls",
)
"""Arguments by which a layer is given a way of its own to multiply."""
RULED = "its layer rule builds the stages, which cannot be interpolative"
"""Why a layer of such a rule takes no interpolative stages."""
_STOCK_PRODUCTS = (None, lax.dot_general, lax.conv_general_dilated, jnp.einsum)


@cache
def parameters_of(kind: type) -> Set[str]:
    """Return the names of the arguments that a class is made with."""
    constructor = kind.__init__  # type: ignore[misc]  # that of the class, not of an instance
    return inspect.signature(constructor).parameters.keys()


def has_own_product(module: Any) -> bool:
    """Tell whether a layer multiplies in its own way, which may do anything with the kernel."""
    return any(getattr(module, name, None) not in _STOCK_PRODUCTS for name in PRODUCTS)


def not_interpolated(module: Any, form: LayerLayout, stack: StackedAxes) -> str:
    """Return why a stock layer takes no interpolative stages; "" where it does.

    Args:
        module: the layer.
        form: of it.
        stack: the axes of its kernel that hold more than one layer.
    """
    if stack.axes:
        return "a stack of layers: each would have pivots of its own"
    if isinstance(form, EinsumForm):
        return "an einsum, between whose letters no channels can be gathered"
    if has_own_product(module):
        return "it multiplies in a way of its own, which interpolative stages have not"
    return ""


def arguments(form: LayerLayout, kind: type, module: Any, *, bias: bool) -> dict[str, Any]:
    """Return the arguments that a stock layer takes in NNX and in Linen alike.

    Those for its sizes differ, but for kernels of convolutions and tables.

    Args:
        form: of the layer.
        kind: its class.
        module: the layer replaced, whose options it gets.
        bias: whether it has a bias.
    """
    known = parameters_of(kind)
    # A way to multiply was given for the class replaced: another class has other operands.
    names = {*OPTIONS, *(PRODUCTS if isinstance(module, kind) else ())} & known
    values = {name: getattr(module, name) for name in names if hasattr(module, name)}
    if "use_bias" in known:
        values["use_bias"] = bias
    match form:
        case EmbedForm():
            values |= {"num_embeddings": form.rows, "features": form.features}
        case EinsumForm():
            values["einsum_str"] = form.text
        case DenseForm(general=True):
            values["axis"] = form.axis
        case ConvForm() | TransposedForm():
            values |= {
                "kernel_size": form.kernel,
                "strides": form.strides,
                "padding": form.padding,
                "kernel_dilation": form.dilation,
            }
    # Flax's transposed convolutions have neither groups nor a dilated input.
    if isinstance(form, ConvForm):
        values["feature_group_count"] = form.groups
        values["input_dilation"] = form.input_dilation or 1
        if form.depthwise and all(values.get(name) in _STOCK_PRODUCTS for name in PRODUCTS):
            values["conv_general_dilated"] = depthwise_conv
    return values


def conv_form(
    module: Any, kernel: tuple[int, ...], inputs: int, outputs: int, *, transposed: bool
) -> ConvForm | TransposedForm:
    """Return the form of a convolution.

    Args:
        module: the layer.
        kernel: its sizes.
        inputs: channels.
        outputs: channels.
        transposed: whether it is a transposed convolution.

    Raises:
        Refused: Flax would refuse its padding, too.
    """
    axes = len(kernel)
    strides, dilation = per_axis(module.strides, axes), per_axis(module.kernel_dilation, axes)
    if transposed:
        padding = transposed_padding(module.padding, reach_of(kernel, dilation))
        flipped = module.transpose_kernel
        return TransposedForm(kernel, inputs, outputs, strides, padding, dilation, flipped)
    padding = lax_padding(module.padding, axes)
    groups, input_dilation = module.feature_group_count, per_axis(module.input_dilation, axes)
    return ConvForm(
        kernel, inputs, outputs, strides, padding, dilation, groups, input_dilation=input_dilation
    )
