"""Forms of stock NNX layers, and the NNX layers of the stages of a chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import Op
from rankfold_jax.layouts import chain_reader as chains
from rankfold_jax.layouts.base import LayerLayout, Roles, Stage
from rankfold_jax.layouts.conv import ConvForm, TransposedForm
from rankfold_jax.layouts.dense import DenseForm, EinsumForm, EmbedForm
from rankfold_jax.layouts.interpolative import InterpolativeForm
from rankfold_jax.layouts.sharding import Axes, to_array, wide
from rankfold_jax.layouts.stacks import ObservedAxes, StackedAxes, find_stacks
from rankfold_jax.layouts.stock_layers import arguments, conv_form
from rankfold_jax.nnx.interpolative import Interpolative
from rankfold_jax.nnx.layer_classes import KINDS, kernel_name
from rankfold_jax.nnx.low_rank_sequential import LowRankSequential, chained
from rankfold_jax.nnx.module_tree import modules

T = TypeVar("T", bound=nnx.Module)
_NAMES = ("out_sharding", "sharding_names", "sharding")


@dataclass(frozen=True, eq=False)
class NNXLayer:
    """A layer as it is held: its form, its Variables and the stacks these are."""

    form: LayerLayout
    stack: StackedAxes
    bias_stack: StackedAxes
    kernel: nnx.Variable[Any]
    bias: nnx.Variable[Any] | None

    def arrays(self) -> tuple[Array, Array | None]:
        """Return (count, *kernel_shape) and (count, *bias_shape)."""
        bias = None if self.bias is None else self.bias_stack.to_front(numbers(self.bias))
        return self.stack.to_front(numbers(self.kernel)), bias


def layer_of(module: Any, seen: ObservedAxes) -> NNXLayer:
    """Read a stock layer.

    Args:
        module: the layer.
        seen: what a trace showed of the axes of its kernel.

    Raises:
        Refused: it computes what no op does, or its arrays do not have the shapes it says.
    """
    kernel = getattr(module, kernel_name(module))
    bias = getattr(module, "bias", None)
    form = form_of(module)
    bias_shape = None if bias is None else tuple(bias.get_raw_value().shape)
    stacks = find_stacks(
        tuple(kernel.get_raw_value().shape), form.kernel_shape, bias_shape, form.bias_shape, seen
    )
    return NNXLayer(form, *stacks, kernel, bias)


def numbers(variable: nnx.Variable[Any]) -> Array:
    """Return the numbers of a Variable; zeros for one that has only a shape."""
    return to_array(variable.get_raw_value())


def form_of(module: Any) -> LayerLayout:
    """Return the form of a stock layer.

    Raises:
        Refused: it computes what no op does.
    """
    if isinstance(module, Interpolative):
        return module.form
    if isinstance(module, nnx.Linear):
        return DenseForm((module.in_features,), (module.out_features,))
    if isinstance(module, nnx.LinearGeneral):
        batch = tuple(module.batch_axis[axis] for axis in sorted(module.batch_axis))
        return DenseForm(module.in_features, module.out_features, module.axis, batch, general=True)
    if isinstance(module, nnx.Embed):
        return EmbedForm(module.num_embeddings, module.features)
    if isinstance(module, nnx.Einsum):
        if module.einsum_str is None:
            raise Refused("its einsum is given anew at every call")
        return EinsumForm(
            module.einsum_str, tuple(module.kernel_shape), tuple(module.bias_shape or ())
        )
    sizes = tuple(module.kernel_size), module.in_features, module.out_features
    return conv_form(module, *sizes, transposed=isinstance(module, nnx.ConvTranspose))


def build(stages: tuple[Stage, ...], module: Any, layer: NNXLayer) -> LowRankSequential:
    """Make stock layers with the options, Variables and shardings of the layer replaced.

    Args:
        stages: of the chain.
        module: the layer replaced.
        layer: the same, read.
    """
    built = []
    for index, stage in enumerate(stages):
        layer_of_stage: Any = stock_layer(stage, module)
        ends = {"first": index == 0, "last": index == len(stages) - 1}
        full = layer.stack.roles(layer.form.roles)
        roles = layer.stack.roles(stage.form.roles)
        name = kernel_name(layer_of_stage)
        variable = _variable(layer.kernel, layer.stack.back(stage.kernel), full, roles, **ends)
        setattr(layer_of_stage, name, variable)
        if stage.bias is not None:
            assert layer.bias is not None
            stack = layer.bias_stack
            variable = _variable(
                layer.bias,
                stack.back(stage.bias),
                stack.roles(layer.form.bias_roles),
                stack.roles(stage.form.bias_roles),
                **ends,
            )
            layer_of_stage.bias = variable
        built.append(layer_of_stage)
    shape = None if layer.stack.axes else tuple(layer.kernel.get_raw_value().shape)
    return chained(built, module, shape)


def stage_op(op: Op, stage: Any, layer: NNXLayer) -> Op:
    """Return the op of one layer of a chain.

    Args:
        op: the layer replaced.
        stage: a stock layer.
        layer: the layer replaced, read.

    Raises:
        Refused: its arrays do not have the shapes it says.
    """
    kernel = getattr(stage, kernel_name(stage))
    bias = getattr(stage, "bias", None)
    return chains.stage_op(
        op,
        form_of(stage),
        (numbers(kernel), layer.stack),
        None if bias is None else (numbers(bias), layer.bias_stack),
        shapes_only=isinstance(kernel.get_raw_value(), jax.ShapeDtypeStruct),
    )


def refilled(module: Any, layer: NNXLayer, kernel: Array, bias: Array | None) -> nnx.Module:
    """Copy a layer with other numbers in its kernel and its bias.

    Args:
        module: the layer.
        layer: the same, read.
        kernel: as the layer holds it.
        bias: the same; None where it has none.
    """
    copied: Any = nnx.clone(module)
    ends = {"first": True, "last": True}
    roles = layer.stack.roles(layer.form.roles)
    variable = _variable(layer.kernel, kernel, roles, roles, **ends)
    setattr(copied, kernel_name(module), variable)
    if bias is not None:
        assert layer.bias is not None
        roles = layer.bias_stack.roles(layer.form.bias_roles)
        copied.bias = _variable(layer.bias, bias, roles, roles, **ends)
    return copied  # type: ignore[no-any-return]  # Flax leaves it Any


def _variable(
    like: nnx.Variable[Any], array: Array, before: Roles, after: Roles, *, first: bool, last: bool
) -> nnx.Variable[Any]:
    axes = Axes(before)
    value = axes.placed(array, like.get_raw_value(), after, first=first, last=last)
    metadata = dict(like.get_metadata())
    for name in _NAMES:
        if metadata.get(name) is not None and not isinstance(metadata[name], jax.sharding.Sharding):
            entries = axes.handed_on(metadata[name], after, first=first, last=last)
            metadata[name] = (
                type(metadata[name])(*entries)
                if isinstance(metadata[name], jax.sharding.PartitionSpec)
                else entries
            )
    return type(like).from_metadata(value, metadata)


def stock_layer(stage: Stage, module: Any) -> nnx.Module:
    """Make a stock layer of the stage's form, with shapes in place of the arrays it is to get."""

    # Not a `partial`: JAX keeps the text of what it traces, and that of a partial has all its
    # arguments in it, the arrays of the stage and the layer replaced.
    def make() -> nnx.Module:
        return _initialised(stage, module)

    layer: nnx.Module = nnx.eval_shape(make)
    return layer


def _initialised(stage: Stage, module: Any) -> nnx.Module:
    # By zeros: drawing random numbers, if only as a trace, takes longer than all else that is done
    # to build a chain.
    form, bias = stage.form, stage.bias is not None
    kind: Any
    sizes: dict[str, Any] = {}
    match form:
        case InterpolativeForm():
            kind, sizes = Interpolative, {"form": form}
        case EmbedForm():
            kind = nnx.Embed
        case EinsumForm():
            kind = nnx.Einsum
            sizes = {"kernel_shape": form.shape, "bias_shape": form.bias if bias else None}
        case DenseForm(general=False):
            kind = nnx.Linear
            sizes = {"in_features": form.inputs[0], "out_features": form.outputs[0]}
        case DenseForm():
            kind = nnx.LinearGeneral
            sizes = {"in_features": form.inputs, "out_features": form.outputs}
            sizes["batch_axis"] = dict(enumerate(form.batch))
        case _:
            assert isinstance(form, ConvForm | TransposedForm)
            kind = nnx.Conv if isinstance(form, ConvForm) else nnx.ConvTranspose
            sizes = {"in_features": form.inputs, "out_features": form.outputs}
    sizes["embedding_init" if kind is nnx.Embed else "kernel_init"] = jax.nn.initializers.zeros
    layer: nnx.Module = kind(**sizes, **arguments(form, kind, module, bias=bias), rngs=nnx.Rngs(0))
    return layer


def in_double(module: T) -> T:
    """Copy a module with float64 arrays; stock layers compute in the dtype of their arrays."""
    double = nnx.clone(module)
    for layer in modules(double).values():
        if isinstance(layer, (*KINDS, Interpolative)):
            for name in ("dtype", "preferred_element_type", "precision"):
                if hasattr(layer, name):
                    setattr(layer, name, None)
            layer.param_dtype = jnp.float64  # type: ignore[attr-defined]  # all of KINDS have it
    nnx.update(double, jax.tree.map(wide, nnx.state(double, nnx.Param)))
    return double


def runner(module: LowRankSequential, layer: NNXLayer) -> Callable[[Array], Array]:
    """Return the chain as a function of stacked inputs, in the precision that is switched on."""
    double = in_double(module)
    stack = layer.stack
    # One compilation in place of one for each operation of each stage, and for layers alike.
    compiled = _compiled(
        *(
            tuple(_without(s.axes, depth) for depth in range(len(stack.axes)))
            for s in (stack, layer.bias_stack)
        )
    )

    def call(x: Array) -> Array:
        y = np.asarray(compiled(double, jax.device_put(x.reshape(*stack.sizes, *x.shape[1:]))))
        return y.reshape(len(x), *y.shape[len(stack.sizes) :])

    return call


@cache
def _compiled(
    kernel_axes: tuple[int | None, ...], bias_axes: tuple[int | None, ...]
) -> Callable[[LowRankSequential, Any], Any]:
    """Return a chain as a compiled function of itself and its input.

    Args:
        kernel_axes: where the axes of a stack lie in the kernels, each once the ones before it are
            gone.
        bias_axes: the same for the biases; None for an axis that they do not have.
    """

    def once(layer: LowRankSequential, x: Any) -> Any:
        return layer(x)

    function: Callable[[LowRankSequential, Any], Any] = once
    for kernel, bias in reversed(list(zip(kernel_axes, bias_axes, strict=True))):
        axes = nnx.StateAxes([(nnx.PathContains("bias"), bias), (..., kernel)])
        function = nnx.vmap(function, in_axes=(axes, 0))
    return nnx.jit(function)


def _without(axes: tuple[int, ...], depth: int) -> int | None:
    """Return where an axis of a stack lies once the ones before it are gone."""
    if depth >= len(axes):
        return None
    return axes[depth] - depth if axes[depth] >= 0 else axes[depth]
