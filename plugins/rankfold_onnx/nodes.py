"""Nodes of ONNX as ops, and ops as nodes: attributes and layouts of weights.

Conv stores (out, in/groups, *kernel), ConvTranspose (in, out/groups, *kernel), Gemm (in, out), or
(out, in) with transB, MatMul (in, out), Gather (rows, columns).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from rankfold.errors import RankfoldError, Refused
from rankfold.linalg import Array
from rankfold.ops import Conv, ConvTranspose, Embedding, Linear, Op, geometry
from rankfold_onnx.graph import attribute, op_of

KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather")
"""The nodes that are layers where a weight is stored in the model."""
_AUTO_PADS = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower", "VALID": "valid"}
_AUTO_PAD_OF = {"same": "SAME_UPPER", "same_lower": "SAME_LOWER"}


def weight_position(node: NodeProto) -> int:
    """Return at which of its inputs a node reads the weight."""
    return 0 if op_of(node) == "Gather" else 1


def data_position(node: NodeProto) -> int:
    """Return at which of its inputs a node reads the activation, or the indices."""
    return 1 - weight_position(node)


def read(node: NodeProto, weight: Array, bias: Array | None) -> Op:
    """Return the op that a node computes.

    Args:
        node: one of `KINDS`.
        weight: as the node reads it.
        bias: as it is added to each output channel, of any shape with one number for each.

    Raises:
        Refused: no op computes that.
    """
    try:
        return _READERS[op_of(node)](node, weight, bias)
    except RankfoldError as error:
        raise Refused(str(error)) from error


def _conv(node: NodeProto, weight: Array, bias: Array | None) -> Op:
    axes = weight.ndim - 2
    auto = attribute(node, "auto_pad", "NOTSET")
    pads = _ints(node, "pads", (0,) * (2 * axes))
    padding = _AUTO_PADS.get(str(auto), tuple(zip(pads[:axes], pads[axes:], strict=True)))
    return Conv(
        weight,
        _vector(bias),
        stride=_ints(node, "strides", (1,) * axes),
        padding=padding,
        dilation=_ints(node, "dilations", (1,) * axes),
        groups=_int(node, "group"),
    )


def _conv_transpose(node: NodeProto, weight: Array, bias: Array | None) -> Op:
    if attribute(node, "output_shape") is not None:
        raise Refused("its padding follows from output_shape; export it with pads")
    axes, groups = weight.ndim - 2, _int(node, "group")
    stride = _ints(node, "strides", (1,) * axes)
    dilation = _ints(node, "dilations", (1,) * axes)
    extra = _ints(node, "output_padding", (0,) * axes)
    pads = _ints(node, "pads", (0,) * (2 * axes))
    pairs = tuple(zip(pads[:axes], pads[axes:], strict=True))
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto in _AUTO_PAD_OF.values():
        # The output is to be `stride` times the input: what is cut off does not depend on its size.
        cut = [
            d * (k - 1) + 1 + e - s
            for k, s, d, e in zip(weight.shape[2:], stride, dilation, extra, strict=True)
        ]
        if min(cut) < 0:
            raise Refused(f"auto_pad {auto!r} pads its output; no ConvTranspose of rankfold does")
        lower = auto == "SAME_LOWER"
        pairs = tuple(((c + lower) // 2, c - (c + lower) // 2) for c in cut)
    elif auto == "VALID":
        pairs = ((0, 0),) * axes
    into, out = weight.shape[0], weight.shape[1] * groups
    split = weight.reshape(groups, into // groups, out // groups, *weight.shape[2:])
    return ConvTranspose(
        np.ascontiguousarray(split.swapaxes(1, 2)).reshape(out, into // groups, *weight.shape[2:]),
        _vector(bias),
        stride=stride,
        padding=pairs,
        dilation=dilation,
        groups=groups,
        output_padding=extra,
    )


def _gemm(node: NodeProto, weight: Array, bias: Array | None) -> Op:
    if attribute(node, "transA", 0):
        raise Refused("its input is transposed (transA)")
    alpha, beta = (_float(node, name) for name in ("alpha", "beta"))
    matrix = weight if attribute(node, "transB", 0) else weight.T
    if alpha != 1.0:
        matrix = (matrix * np.float64(alpha)).astype(weight.dtype)
    vector = _vector(bias)
    if vector is not None and beta != 1.0:
        vector = (vector * np.float64(beta)).astype(vector.dtype)
    if vector is not None and vector.size == 1:
        vector = np.repeat(vector, len(matrix))
    return Linear(np.ascontiguousarray(matrix), vector)


def _matmul(node: NodeProto, weight: Array, bias: Array | None) -> Op:
    if weight.ndim > 2 and weight.size == weight.shape[-1] * weight.shape[-2]:
        raise Refused(f"its weight has the shape {weight.shape}; store it as a matrix")
    if weight.ndim != 2:
        raise Refused(f"its weight has the shape {weight.shape}, which is no matrix")
    return Linear(np.ascontiguousarray(weight.T), _vector(bias))


def _gather(node: NodeProto, weight: Array, bias: Array | None) -> Op:
    return Embedding(weight)


_READERS = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Gather": _gather,
}


def convolution(op: Conv | ConvTranspose, inputs: Sequence[str], output: str) -> NodeProto:
    """Return the node of a convolution."""
    geo = geometry(op)
    options: dict[str, Any] = {
        "kernel_shape": list(geo.kernel),
        "strides": list(geo.stride),
        "dilations": list(geo.dilation),
        "group": op.groups,
    }
    if isinstance(geo.padding, str):
        options["auto_pad"] = _AUTO_PAD_OF[geo.padding]
    else:
        lows, highs = zip(*geo.padding, strict=True)
        options["pads"] = [*lows, *highs]
    if isinstance(op, ConvTranspose):
        options["output_padding"] = list(geo.output_padding)
    return helper.make_node(type(op).__name__, list(inputs), [output], **options)


def stored(op: Op, *, transposed: bool = False) -> Array:
    """Return the weight of an op as a node stores it.

    Args:
        op: the op.
        transposed: whether a matrix is stored (out, in), as Gemm has it with transB.
    """
    weight = np.asarray(op.weight)
    if isinstance(op, Linear):
        return weight if transposed else np.ascontiguousarray(weight.T)
    if isinstance(op, ConvTranspose):
        out, into, groups = len(weight), weight.shape[1] * op.groups, op.groups
        split = weight.reshape(groups, out // groups, into // groups, *weight.shape[2:])
        turned = np.ascontiguousarray(split.swapaxes(1, 2))
        return turned.reshape(into, out // groups, *weight.shape[2:])
    return weight


def without_bias(op: Op) -> Op:
    """Return an op without its bias."""
    return op if isinstance(op, Embedding) else replace(op, bias=None)


def _vector(bias: Array | None) -> Array | None:
    return None if bias is None else bias.reshape(-1)


def _ints(node: NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = attribute(node, name, default)
    return value if isinstance(value, tuple) and value else default


def _int(node: NodeProto, name: str) -> int:
    value = attribute(node, name, 1)
    assert isinstance(value, int)
    return value


def _float(node: NodeProto, name: str) -> float:
    value = attribute(node, name, 1.0)
    assert isinstance(value, (int, float))
    return float(value)
