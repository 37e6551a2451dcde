"""Forms of stock Linen layers, and the Linen layers that compute a form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rankfold.errors import Refused
from rankfold_jax.layouts.base import LayerLayout
from rankfold_jax.layouts.conv import ConvForm, TransposedForm
from rankfold_jax.layouts.dense import DenseForm, EinsumForm, EmbedForm
from rankfold_jax.layouts.interpolative import InterpolativeForm
from rankfold_jax.layouts.stock_layers import OPTIONS, PRODUCTS, arguments, conv_form
from rankfold_jax.linen.interpolative import Interpolative

KINDS: tuple[type[nn.Module], ...] = (
    nn.Dense,
    nn.DenseGeneral,
    nn.Einsum,
    nn.Conv,
    nn.ConvTranspose,
    nn.Embed,
)
_DRAWN = nn.initializers.lecun_normal()
_NUMBERS: tuple[type, ...] = (bool, int, float, str, tuple, list, type(None))


def raw(method: Any) -> Any:
    """Return the function that a module's method was written as, beneath Flax's own wrapper."""
    return getattr(method, "__wrapped__", method)


CALLS: dict[Any, type[nn.Module]] = {raw(kind.__call__): kind for kind in KINDS}
"""The computation of each stock layer, by which its calls are recognised: a subclass and a layer
under remat, jit or vmap run the same function."""
SETUP, ATTEND = raw(nn.Embed.setup), raw(nn.Embed.attend)


def array_name(kind: type[nn.Module]) -> str:
    """Return the name of the parameter that holds the kernel."""
    return "embedding" if kind is nn.Embed else "kernel"


def form_of(
    module: Any,
    kind: type[nn.Module],
    kernel: tuple[int, ...],
    bias: tuple[int, ...] | None,
    einsum: str | None,
) -> LayerLayout:
    """Return the form of a stock layer.

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
    inputs, outputs = kernel[-2:]
    if kind is nn.Conv:
        inputs *= module.feature_group_count
    elif module.transpose_kernel:
        inputs, outputs = outputs, inputs
    return conv_form(module, kernel[:-2], inputs, outputs, transposed=kind is nn.ConvTranspose)


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
        """Return the value in its box."""
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


def make(
    spec: StageSpec, module: Any, name: str | None, init: Callable[..., Any] = _DRAWN
) -> nn.Module:
    """Make a stock layer for a stage, with the options of the layer replaced.

    Args:
        spec: of the stage.
        module: the layer replaced.
        name: of the new layer in it; None for one that is not in it yet.
        init: gives its kernel.
    """
    form = spec.form
    if spec.module is not None:
        return spec.module.clone(name=name, parent=None if name is None else module)
    kind: Any
    sizes: dict[str, Any] = {}
    match form:
        case InterpolativeForm():
            kind, sizes = Interpolative, {"form": form}
        case EmbedForm():
            kind = nn.Embed
        case EinsumForm():
            kind, sizes = nn.Einsum, {"shape": form.shape}
        case DenseForm(general=False):
            kind, sizes = nn.Dense, {"features": form.outputs[0]}
        case DenseForm():
            kind, sizes = nn.DenseGeneral, {"features": form.outputs}
            sizes["batch_dims"] = tuple(range(len(form.batch)))
        case _:
            assert isinstance(form, ConvForm | TransposedForm)
            kind = nn.Conv if isinstance(form, ConvForm) else nn.ConvTranspose
            sizes = {"features": form.outputs}
    inits = {f"{array_name(kind)}_init": _boxed(init, spec.kernel_box)}
    if spec.use_bias:
        inits["bias_init"] = _boxed(nn.initializers.zeros_init(), spec.bias_box)
    common = arguments(form, kind, module, bias=spec.use_bias)
    layer: nn.Module = kind(**sizes, **common, **inits, name=name)
    return layer


def _boxed(init: Callable[..., Any], box: Any) -> Callable[..., Any]:
    return init if box is None else Boxed(init, box)


def geometry(module: nn.Module, kind: type[nn.Module]) -> tuple[tuple[str, str], ...]:
    """Return the sizes and the geometry that a layer is made with: field and value, as words.

    They are words as fields may hold lists, and what is replaced where is part of cache keys.

    Args:
        module: the layer.
        kind: the class whose computation it does; what a subclass adds is not looked at.
    """
    names = {field.name for field in dataclasses.fields(kind)} - {"parent", "name"}
    plain = {name: getattr(module, name) for name in names.difference(OPTIONS, PRODUCTS)}
    return tuple(
        (name, repr(value)) for name, value in sorted(plain.items()) if isinstance(value, _NUMBERS)
    )


def in_double(module: nn.Module) -> nn.Module:
    """Return the same layer, computing in the dtype of its arrays, which it has to be given.

    A stock layer draws none: at each call Flax traces the initializers anew for the shapes they
    give, and layers that are alike but for them would not be equal.
    """
    known = {field.name for field in dataclasses.fields(module)}
    plain: dict[str, Any] = {"dtype": None, "precision": None, "preferred_element_type": None}
    if type(module) in (*KINDS, Interpolative):
        inits = ("kernel_init", "embedding_init", "bias_init")
        plain |= dict.fromkeys(inits, nn.initializers.zeros)
    options = {name: value for name, value in plain.items() if name in known}
    if "param_dtype" in known:
        options["param_dtype"] = jnp.float64
    return module.clone(parent=None, name=None, **options)


def unboxed(value: Any) -> Any:
    """Return the array of a parameter, out of its box."""
    return nn.meta.unbox(value) if isinstance(value, nn.meta.AxisMetadata) else value


def _ints(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (int(value),)


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of a parameter, boxed or not."""
    return tuple(jax.numpy.shape(unboxed(value)))
