"""From a stock PyTorch layer to an op, and from a chain of ops to an `nn.Sequential` of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from rankfold.errors import Refused
from rankfold.geometry import Geometry
from rankfold.ops import (
    Array,
    Chain,
    Conv,
    ConvTranspose,
    Embedding,
    Linear,
    Op,
    blank,
    channels,
    geometry,
)
from rankfold_torch.memory import parameter
from rankfold_torch.same import SAME

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
STAYING = ("cuda",)
"""Types of devices that have float64, and all of the linear algebra that decompositions need."""
_CARRIED = (bool, int, float, str, tuple, torch.dtype, type(None))
_PADS: dict[str, dict[int, type[nn.Module]]] = {
    "zeros": {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d},
    "reflect": {1: nn.ReflectionPad1d, 2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d},
    "replicate": {1: nn.ReplicationPad1d, 2: nn.ReplicationPad2d, 3: nn.ReplicationPad3d},
    "circular": {1: nn.CircularPad1d, 2: nn.CircularPad2d, 3: nn.CircularPad3d},
}


def to_array(tensor: torch.Tensor) -> Array:
    """A float tensor as an array for an op.

    On the CPU a NumPy array, of the same memory for float32 and float64; on a device in `STAYING`
    the tensor itself, so that it is decomposed there. bfloat16 and float16 come as float32, in
    which they are exact.
    """
    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    array: Any = tensor if tensor.device.type in STAYING else tensor.cpu().numpy()
    return array  # type: ignore[no-any-return]  # a tensor stands for an array


def read(module: nn.Module) -> Op:
    """The op of a stock layer, or of a subclass as if it were one.

    It is what a layer rule names, or begins with, for a layer that is a stock layer in all but its
    class. The weights have been found to be ordinary tensors.
    """
    weight = to_array(module.weight)  # type: ignore[arg-type]  # stock layers have a weight
    bias: Any = getattr(module, "bias", None)
    return _as_op(module, weight, None if bias is None else to_array(bias))


def sized(module: nn.Module) -> Op | None:
    """The op of a stock layer without its values, for what it costs; None for other modules."""
    weight = getattr(module, "weight", None) if isinstance(module, KINDS) else None
    if not isinstance(weight, torch.Tensor) or nn.parameter.is_lazy(weight):
        return None
    return _as_op(module, blank(*weight.shape), None)


def _as_op(module: nn.Module, weight: Array, bias: Array | None) -> Op:
    if isinstance(module, nn.Embedding):
        return Embedding(weight)
    if isinstance(module, nn.Linear):
        return Linear(weight, bias)
    if isinstance(module, tuple(TRANSPOSED.values())):
        return _read_transposed(module, weight, bias)
    return _read_conv(module, weight, bias)


def _read_conv(module: Any, weight: Array, bias: Array | None) -> Conv:
    padding = module.padding if isinstance(module.padding, str) else tuple(module.padding)
    return Conv(
        weight,
        bias,
        stride=tuple(module.stride),
        padding=padding,
        dilation=tuple(module.dilation),
        groups=module.groups,
        padding_mode=module.padding_mode,
    )


def _read_transposed(module: Any, weight: Array, bias: Array | None) -> ConvTranspose:
    return ConvTranspose(
        swap_channels(weight, module.groups),
        bias,
        stride=tuple(module.stride),
        padding=tuple(module.padding),
        dilation=tuple(module.dilation),
        groups=module.groups,
        output_padding=tuple(module.output_padding),
    )


def build(chain: Chain, like: nn.Module) -> nn.Sequential:
    """The chain as stock layers with the dtype, device, mode and so on of the layer replaced.

    What parents read from a layer besides its weights (in_features, stride and the like) is set on
    the `nn.Sequential` as plain attributes.

    Raises:
        Refused: PyTorch has no layer for a stage.
    """
    modules: list[nn.Module] = []
    for stage in chain:
        if isinstance(stage, Linear):
            if stage.groups > 1:
                raise Refused("PyTorch has no grouped Linear")
            modules.append(_fill(nn.Linear, stage, like, *reversed(channels(stage))))
        elif isinstance(stage, Embedding):
            modules.append(_build_embedding(stage, like))
        elif isinstance(stage, ConvTranspose):
            modules.append(_build_transposed(stage, like))
        else:
            modules.extend(_build_conv(stage, like))
    built = nn.Sequential(*modules)
    for name, value in carried(like).items():
        setattr(built, name, value)
    return built.train(like.training)


def chain(built: nn.Module) -> Chain:
    """The chain that a module of `build` stands for, with the weights that it has now.

    Raises:
        Refused: it is no such module.
    """
    if not isinstance(built, nn.Sequential) or not any(isinstance(m, KINDS) for m in built):
        raise Refused(f"a {type(built).__name__} stands in its place, not a chain of layers")
    return tuple(read(stage) for stage in built if isinstance(stage, KINDS))


def carried(layer: nn.Module) -> dict[str, Any]:
    """The plain attributes of a layer that its replacement gets: sizes, geometry, additions."""
    plain = vars(nn.Module())
    return {
        name: value
        for name, value in vars(layer).items()
        if name not in plain and isinstance(value, _CARRIED)
    }


def run(module: nn.Module, x: Array) -> Array:
    """The output of a built module in float64, so that only the rounding of its weights shows."""
    double = copy.deepcopy(module).double().eval()
    device = next(double.parameters()).device
    tensor = torch.from_numpy(np.ascontiguousarray(x)).to(device)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user is warned when the model runs, not here
        y: Array = double(tensor).cpu().numpy()
    return y


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
        kinds, padding = SAME, ((0, 0),) * geo.axes
    before: list[nn.Module] = []
    if not isinstance(padding, str) and any(low != high for low, high in padding):
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
        padding_mode=stage.padding_mode if kinds is SAME or any_padding(padding) else "zeros",
    )
    return [*before, layer]


def any_padding(padding: str | tuple[int, ...]) -> bool:
    """Whether a PyTorch padding argument pads at all."""
    return isinstance(padding, str) or any(padding)


def _conv_padding(geo: Geometry) -> Any:
    """What PyTorch can take: "same", or pairs; None where it is "same" at a stride."""
    if not isinstance(geo.padding, str):
        return geo.padding
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
    """Makes a layer without initialising it and assigns the weights of a stage."""
    old = like.weight
    assert isinstance(old, torch.Tensor)
    if not isinstance(stage, Embedding):
        options["bias"] = stage.bias is not None
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
    """Between (in, out/groups, *kernel) and (out, in/groups, *kernel); its own inverse."""
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(-1, weight.shape[0] // groups, *weight.shape[2:])
