"""From a stock Linen layer to its form, and from a form to the Linen layer that computes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from rankfold.errors import Refused
from rankfold_jax.layouts.base import LayerLayout
from rankfold_jax.layouts.conv import ConvForm, TransposedForm
from rankfold_jax.layouts.dense import DenseForm, EinsumForm, EmbedForm
from rankfold_jax.layouts.depthwise import depthwise_conv
from rankfold_jax.layouts.padding import lax_padding, per_axis, reach_of, transposed_padding

KINDS: tuple[type[nn.Module], ...] = (
    nn.Dense,
    nn.DenseGeneral,
    nn.Einsum,
    nn.Conv,
    nn.ConvTranspose,
    nn.Embed,
)
_OPTIONS = ("dtype", "param_dtype", "precision", "promote_dtype", "preferred_element_type")
_PRODUCTS = (
    "dot_general",
    "dot_general_cls",
    "conv_general_dilated",
    "conv_general_dilated_cls",
)

_NUMBERS: tuple[type, ...] = (bool, int, float, str, tuple, list, type(None))


def raw(method: Any) -> Any:
    """The function that a module's method was written as, beneath Flax's own wrapper."""
    return getattr(method, "__wrapped__", method)


CALLS: dict[Any, type[nn.Module]] = {raw(kind.__call__): kind for kind in KINDS}
"""The computation of each stock layer, by which its calls are recognised: a subclass and a layer
under remat, jit or vmap run the same function."""
SETUP, ATTEND = raw(nn.Embed.setup), raw(nn.Embed.attend)


def array_name(kind: type[nn.Module]) -> str:
    """The name of the parameter that holds the kernel."""
    return "embedding" if kind is nn.Embed else "kernel"


def form_of(
    module: Any,
    kind: type[nn.Module],
    kernel: tuple[int, ...],
    bias: tuple[int, ...] | None,
    einsum: str | None,
) -> LayerLayout:
    """The form of a stock layer.

    Args:
        module: the layer.
        kind: the stock class whose computation it does.
        kernel: the shape of its kernel as it sees it, without stacked axes.
        bias: the shape of its bias; None without one.
        einsum: the equation it was called with, if any.

    Raises:
        Refused: it computes what no op does.
    """
    if kind is nn.Dense:
        return DenseForm(kernel[:1], kernel[1:])
    if kind is nn.Embed:
        return EmbedForm(*kernel)
    if kind is nn.DenseGeneral:
        batch, outputs = len(_ints(module.batch_dims)), len(_ints(module.features))
        split = len(kernel) - outputs
        axis = _ints(module.axis)
        return DenseForm(kernel[batch:split], kernel[split:], axis, kernel[:batch], general=True)
    if kind is nn.Einsum:
        text = module.einsum_str or einsum
        if text is None:
            raise Refused("its einsum is not known")
        return EinsumForm(text.replace(" ", ""), kernel, bias or ())
    if isinstance(module, nn.ConvLocal):
        raise Refused("its kernel is not shared between positions")
    if module.mask is not None:
        raise Refused("masked")
    axes = len(kernel) - 2
    strides, dilation = per_axis(module.strides, axes), per_axis(module.kernel_dilation, axes)
    if kind is nn.ConvTranspose:
        inputs, outputs = kernel[-2:][::-1] if module.transpose_kernel else kernel[-2:]
        padding = transposed_padding(module.padding, reach_of(kernel[:-2], dilation))
        return TransposedForm(
            kernel[:-2],
            inputs,
            outputs,
            strides,
            padding,
            dilation,
            flipped=module.transpose_kernel,
        )
    groups = module.feature_group_count
    return ConvForm(
        kernel[:-2],
        kernel[-2] * groups,
        kernel[-1],
        strides,
        lax_padding(module.padding, axes),
        dilation,
        groups=groups,
        input_dilation=per_axis(module.input_dilation, axes),
    )


@dataclass(frozen=True)
class Boxed:
    """An initializer whose value comes in a box with the names of its axes.

    Attributes:
        init: gives the value.
        box: an `nn.Partitioned` without a value.
    """

    init: Callable[..., Any]
    box: Any

    def __call__(self, key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
        """The value in its box."""
        return self.box.replace(value=self.init(key, shape, dtype))


@dataclass(frozen=True)
class StageSpec:
    """One layer of a chain, without its arrays: what is needed to make it again.

    Attributes:
        form: its shape and geometry.
        use_bias: whether it has a bias.
        kernel_box: how its kernel is boxed, as an `nn.Partitioned` without a value; None if not.
        bias_box: the same for its bias.
        ruled: whether it is in the place of a layer that a layer rule reads.
        module: what a layer rule built, unbound, which has no form; None for a stock layer.
    """

    form: LayerLayout | None
    use_bias: bool
    kernel_box: Any = None
    bias_box: Any = None
    ruled: bool = False
    module: nn.Module | None = None


def make(spec: StageSpec, module: Any, name: str | None) -> nn.Module:
    """A stock layer for a stage, with the options of the layer replaced.

    Args:
        spec: of the stage.
        module: the layer replaced.
        name: of the new layer in it; None for one that is not in it yet.
    """
    form = spec.form
    if spec.module is not None:
        return spec.module.clone(name=name, parent=None if name is None else module)
    kernel_init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros_init()
    if spec.kernel_box is not None:
        kernel_init = Boxed(kernel_init, spec.kernel_box)
    if spec.bias_box is not None:
        bias_init = Boxed(bias_init, spec.bias_box)
    if isinstance(form, EmbedForm):
        options = _options(module, nn.Embed)
        return nn.Embed(form.rows, form.features, embedding_init=kernel_init, name=name, **options)
    inits = {
        "kernel_init": kernel_init,
        "bias_init": bias_init,
        "use_bias": spec.use_bias,
        "name": name,
    }
    if isinstance(form, EinsumForm):
        return nn.Einsum(form.shape, form.text, **inits, **_options(module, nn.Einsum))
    if isinstance(form, DenseForm):
        if not form.general:
            return nn.Dense(form.outputs[0], **inits, **_options(module, nn.Dense))
        return nn.DenseGeneral(
            form.outputs,
            axis=form.axis,
            batch_dims=tuple(range(len(form.batch))),
            **inits,
            **_options(module, nn.DenseGeneral),
        )
    assert isinstance(form, ConvForm | TransposedForm)
    geometry: dict[str, Any] = {
        "strides": form.strides,
        "padding": form.padding,
        "kernel_dilation": form.dilation,
    }
    if isinstance(form, TransposedForm):
        options = _options(module, nn.ConvTranspose)
        return nn.ConvTranspose(form.outputs, form.kernel, **geometry, **inits, **options)
    options = _options(module, nn.Conv)
    product = options.get("conv_general_dilated")
    if (
        form.depthwise
        and product in (None, lax.conv_general_dilated)
        and options.get("conv_general_dilated_cls") is None
    ):
        options["conv_general_dilated"] = depthwise_conv
    return nn.Conv(
        form.outputs,
        form.kernel,
        **geometry,
        feature_group_count=form.groups,
        input_dilation=form.input_dilation or 1,
        **inits,
        **options,
    )


def _options(module: Any, kind: type[nn.Module]) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(kind)}
    names = [*_OPTIONS, *(_PRODUCTS if isinstance(module, kind) else ())]
    return {
        name: getattr(module, name) for name in names if name in known and hasattr(module, name)
    }


def geometry(module: nn.Module, kind: type[nn.Module]) -> tuple[tuple[str, str], ...]:
    """The sizes and the geometry that a layer is made with: field and value, as words.

    They are words as fields may hold lists, and what is replaced where is part of cache keys.

    Args:
        module: the layer.
        kind: the class whose computation it does; what a subclass adds is not looked at.
    """
    names = {field.name for field in dataclasses.fields(kind)} - {"parent", "name"}
    plain = {name: getattr(module, name) for name in names.difference(_OPTIONS, _PRODUCTS)}
    return tuple(
        (name, repr(value)) for name, value in sorted(plain.items()) if isinstance(value, _NUMBERS)
    )


def own_product(module: Any) -> bool:
    """Whether the layer multiplies in a way of its own, which may do anything with the kernel."""
    stock = (None, lax.dot_general, lax.conv_general_dilated)
    return any(getattr(module, name, None) not in stock for name in _PRODUCTS)


def in_double(module: nn.Module) -> nn.Module:
    """The same layer, computing in the dtype of its arrays."""
    known = {field.name for field in dataclasses.fields(module)}
    plain: dict[str, Any] = {"dtype": None, "precision": None, "preferred_element_type": None}
    options = {name: value for name, value in plain.items() if name in known}
    if "param_dtype" in known:
        options["param_dtype"] = jnp.float64
    return module.clone(parent=None, name=None, **options)


def unboxed(value: Any) -> Any:
    """The array of a parameter, out of its box."""
    return nn.meta.unbox(value) if isinstance(value, nn.meta.AxisMetadata) else value


def _ints(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (int(value),)


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a parameter, boxed or not."""
    return tuple(jax.numpy.shape(unboxed(value)))
