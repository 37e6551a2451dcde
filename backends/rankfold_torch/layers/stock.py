"""Conversion of a stock PyTorch layer to an op, and of a chain of ops to an `nn.Sequential`."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from rankfold.errors import RankfoldError, Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, ConvTranspose, Embedding, Linear, Op, channels, geometry
from rankfold.ops.geometry import Geometry
from rankfold.state.restoration import Restored
from rankfold_torch.layers import geometry as geometry_of
from rankfold_torch.layers import interpolative
from rankfold_torch.layers.interpolative import Interpolative
from rankfold_torch.layers.low_rank_sequential import LowRankSequential
from rankfold_torch.layers.parameter_memory import parameter
from rankfold_torch.layers.same_padding import SAME

CONVS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
KINDS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Embedding,
    *CONVS.values(),
    *TRANSPOSED.values(),
)
_COMPUTING = ("forward", "__call__", "_call_impl", "_conv_forward", "_output_padding")
STAYING = ("cuda",)
"""Types of devices whose weights, moments and regression sums are worked with where they are: those
that have float64, and all of the linear algebra that decompositions need."""
_PADS: dict[str, dict[int, type[nn.Module]]] = {
    "zeros": {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d},
    "reflect": {1: nn.ReflectionPad1d, 2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d},
    "replicate": {1: nn.ReplicationPad1d, 2: nn.ReplicationPad2d, 3: nn.ReplicationPad3d},
    "circular": {1: nn.CircularPad1d, 2: nn.CircularPad2d, 3: nn.CircularPad3d},
}
_PADDING = tuple(pad for pads in _PADS.values() for pad in pads.values())


def stays(device: torch.device) -> bool:
    """Return whether the tensors of a device are worked with there, and not as NumPy's arrays."""
    return device.type in STAYING


def to_array(tensor: torch.Tensor) -> Array:
    """Return a float tensor as an array for an op.

    On the CPU a NumPy array, of the same memory for float32 and float64; on a device in `STAYING`
    the tensor itself, so that it is decomposed there. bfloat16 and float16 come as float32, in
    which they are exact.
    """
    tensor = tensor.detach()
    # NumPy has no bfloat16, and BLAS neither of the two.
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    array: Any = tensor if stays(tensor.device) else tensor.cpu().numpy()
    return array  # type: ignore[no-any-return]  # a tensor stands for an array


def read(module: nn.Module) -> Op:
    """Read a stock layer, or a subclass as if it were one, as an op.

    It is what a layer rule names, or begins with, for a layer that is a stock layer in all but its
    class. The weights have been found to be ordinary tensors.

    Raises:
        Refused: its geometry was set to what PyTorch cannot run.
    """
    weight = to_array(module.weight)  # type: ignore[arg-type]  # stock layers have a weight
    bias: Any = getattr(module, "bias", None)
    try:
        return _as_op(module, weight, None if bias is None else to_array(bias))
    # The geometry is the layer's own, so the fault is of this layer and not of the call.
    except RankfoldError as error:  # groups that do not divide the channels, say
        raise Refused(str(error)) from None


def stock(module: nn.Module) -> type[nn.Module] | None:
    """Return the stock class that a layer is of; None for other modules."""
    return next((kind for kind in KINDS if isinstance(module, kind)), None)


def computes_as(module: nn.Module, kind: type[nn.Module]) -> bool:
    """True if a layer runs the code of a stock class alone."""
    # `isinstance` alone would pass a subclass with a forward of its own, and a layer on whose
    # instance something has put another forward.
    return all(_code(module, part) is _code(kind, part) for part in _COMPUTING)


def _code(owner: Any, name: str) -> Any:
    """Return a function of a class, or of a module where that has been given it as its own."""
    member = inspect.getattr_static(owner, name, None)
    # Libraries that exchange `forward` on an instance put it back as a bound method, in `__dict__`.
    bound = isinstance(member, MethodType) and member.__self__ is owner
    return member.__func__ if bound else member


def _as_op(module: nn.Module, weight: Array, bias: Array | None) -> Op:
    if isinstance(module, nn.Embedding):
        return Embedding(weight)
    if isinstance(module, nn.Linear):
        return Linear(weight, bias)
    axes = weight.ndim - 2
    if isinstance(module, tuple(TRANSPOSED.values())):
        options = geometry_of.transposed(module, axes)
        return ConvTranspose(swap_channels(weight, options["groups"]), bias, **options)
    return Conv(weight, bias, **geometry_of.convolution(module, axes))


def build(chain: Chain, like: nn.Module) -> LowRankSequential:
    """Build the chain as stock layers with dtype, device, mode and so on of the layer replaced.

    Raises:
        Refused: PyTorch has no layer for a stage.
    """
    modules: list[nn.Module] = []
    for stage in chain:
        if isinstance(stage, (Linear, Conv)) and stage.pivots is not None:
            modules.append(interpolative.build(stage, like))
        elif isinstance(stage, Linear):
            # No decomposition makes one of an nn.Linear; a rule that reads grouped layers has to
            # build.
            if stage.groups > 1:
                raise Refused("PyTorch has no grouped Linear")
            modules.append(_fill(nn.Linear, stage, like, *reversed(channels(stage))))
        elif isinstance(stage, Embedding):
            modules.append(_build_embedding(stage, like))
        elif isinstance(stage, ConvTranspose):
            modules.append(_build_transposed(stage, like))
        else:
            modules.extend(_build_conv(stage, like))
    # Padding layers and the container have modes of their own, which `_fill` has not set.
    return LowRankSequential.of(modules, like).train(like.training)


def chain(built: nn.Module) -> Chain:
    """Return the chain that a module of `build` stands for, with the weights that it has now.

    Raises:
        Refused: it is no such module.
    """
    if not isinstance(built, nn.Sequential) or not any(isinstance(m, KINDS) for m in built):
        raise Refused(f"a {type(built).__name__} stands in its place, not a chain of layers")
    for module in built:
        if not isinstance(module, (*KINDS, Interpolative, *_PADDING)):
            raise Refused(
                f"a {type(module).__name__} stands in its chain, which is then no layer any more; "
                "take it out"
            )
    return tuple(_stage(stage) for stage in built if isinstance(stage, (*KINDS, Interpolative)))


def _stage(module: nn.Module) -> Op:
    if not isinstance(module, Interpolative):
        return read(module)
    bias: Any = module.bias
    added = None if bias is None else to_array(bias)
    return interpolative.read(module, to_array(module.weight), added)


def run(module: nn.Module, x: Array) -> Array:
    """Return the output of a built module in float64: only the rounding of its weights shows."""
    double = copy.deepcopy(module).double().eval()
    device = next(double.parameters()).device
    tensor = torch.from_numpy(np.ascontiguousarray(x)).to(device)
    with torch.no_grad(), warnings.catch_warnings(), _single_threaded():
        warnings.simplefilter("ignore")  # the user is warned when the model runs, not here
        y: Array = double(tensor).cpu().numpy()
    return y


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Let PyTorch compute with one thread: on a few rows, others cost many times what they gain."""
    threads = torch.get_num_threads()
    with Restored(lambda: torch.set_num_threads(threads)):
        torch.set_num_threads(1)
        yield


def _build_embedding(stage: Embedding, like: nn.Module) -> nn.Module:
    rows, dim = stage.weight.shape
    options = {}
    if isinstance(like, nn.Embedding):
        options = {
            "padding_idx": like.padding_idx,
            "scale_grad_by_freq": like.scale_grad_by_freq,
            "sparse": like.sparse,
        }
    return _fill(nn.Embedding, stage, like, rows, dim, **options)


def _build_conv(stage: Conv, like: nn.Module) -> list[nn.Module]:
    geo = geometry(stage)
    padding: Any = _conv_padding(geo)
    kinds = CONVS
    if padding is None:
        # PyTorch's "same" is for stride 1; these pad by the size of their input.
        kinds, padding = SAME, ((0, 0),) * geo.axes
    before: list[nn.Module] = []
    # A convolution of PyTorch pads both sides alike, so that unequal amounts need a layer before
    # it.
    if not isinstance(padding, str) and any(low != high for low, high in padding):
        # Padding layers take the last axis first.
        amounts = [side for pair in reversed(padding) for side in pair]
        pad = _PADS[stage.padding_mode][geo.axes]
        before = [
            pad(tuple(amounts), 0.0) if stage.padding_mode == "zeros" else pad(tuple(amounts))
        ]
        padding = (0,) * geo.axes
    elif not isinstance(padding, str):
        padding = tuple(low for low, _ in padding)
    layer = _fill(
        kinds[geo.axes],
        stage,
        like,
        *reversed(channels(stage)),
        geo.kernel,
        stride=geo.stride,
        padding=padding,
        dilation=geo.dilation,
        groups=stage.groups,
        # Without padding of its own the mode has no effect, and "zeros" spares the slower path.
        padding_mode=stage.padding_mode if kinds is SAME or any_padding(padding) else "zeros",
    )
    return [*before, layer]


def any_padding(padding: str | tuple[int, ...]) -> bool:
    """True if a PyTorch padding argument pads at all."""
    return isinstance(padding, str) or any(padding)


def _conv_padding(geo: Geometry) -> Any:
    """Return a padding for PyTorch: "same", or pairs; None where it is "same" at a stride."""
    if not isinstance(geo.padding, str):
        return geo.padding
    # A kernel of one tap needs no padding in any mode.
    if all(reach == 1 for reach in geo.reach):
        return ((0, 0),) * geo.axes
    if any(s > 1 for s in geo.stride):
        if geo.padding == "same":
            return None
        raise Refused(f"PyTorch has no padding {geo.padding!r} with stride {geo.stride}")
    if geo.padding == "same":
        return "same"
    return geo.pads((1,) * geo.axes)  # at stride 1 it does not depend on the size


def _build_transposed(stage: ConvTranspose, like: nn.Module) -> nn.Module:
    geo = geometry(stage)
    pads = geo.pads((1,) * geo.axes)
    if any(low != high for low, high in pads):
        raise Refused(f"PyTorch has no transposed convolution with padding {pads}")
    return _fill(
        TRANSPOSED[geo.axes],
        stage,
        like,
        *reversed(channels(stage)),
        geo.kernel,
        stride=geo.stride,
        padding=tuple(low for low, _ in pads),
        output_padding=geo.output_padding,
        groups=stage.groups,
        dilation=geo.dilation,
    )


def _fill(
    make: Callable[..., nn.Module], stage: Op, like: nn.Module, *args: Any, **options: Any
) -> nn.Module:
    """Make a layer without initialising it and assign the weights of a stage."""
    old = like.weight
    assert isinstance(old, torch.Tensor)
    if not isinstance(stage, Embedding):
        options["bias"] = stage.bias is not None
    # On the meta device nothing is allocated or drawn.
    module = make(*args, device="meta", **options)
    weight = stage.weight
    if isinstance(stage, ConvTranspose):
        weight = swap_channels(weight, stage.groups)
    module.weight = parameter(weight, old)
    if stage.bias is not None:
        bias = like.bias
        assert isinstance(bias, torch.Tensor)
        module.bias = parameter(stage.bias, bias)
    return module


def swap_channels(weight: Array, groups: int) -> Array:
    """Swap (in, out/groups, *kernel) and (out, in/groups, *kernel); its own inverse."""
    # Channels are swapped within each group: the two layouts differ in which of them is divided.
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(-1, weight.shape[0] // groups, *weight.shape[2:])
