"""Operations on arrays of NumPy and of the array API alike.

Two libraries are named, where the standard says nothing: bfloat16 and graphs of PyTorch's tensors,
and JAX's float64, which is switched on by its user. What is told apart is arrays, whoever has them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
JAX_BY_NUMPY = ("cpu",)
"""Platforms of JAX whose arrays are worked with as NumPy's."""


def namespace(array: Array) -> Any:
    """Return the array API namespace of an array."""
    # NumPy has most of it under the same names. Looking its namespace up takes a microsecond, in
    # sweeps over small factors as long as a product; the functions below tell NumPy apart where
    # its own names do more: results in a given type or order without a copy in between.
    if isinstance(array, np.ndarray):
        return np
    import array_api_compat

    return array_api_compat.array_namespace(array)


def taken(array: Any) -> Any:
    """Convert an argument to an array that decompositions can compute with.

    A tensor is detached from its graph, and one that PyTorch negates only when it is read is
    negated. Bfloat16 becomes float32, in which it is exact. An array of JAX becomes NumPy's unless
    it stays (`stays_in_jax`). Anything else, what is no array included, is returned as it is.
    """
    if hasattr(array, "detach") and hasattr(array, "requires_grad"):
        array = array.detach()
    if isinstance(array, np.ndarray):
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        return array
    import array_api_compat

    if array_api_compat.is_jax_array(array):
        if not stays_in_jax(array):
            return taken(np.asarray(array))
        return array.astype("float32") if array.dtype.itemsize < 4 else array
    if array_api_compat.is_torch_array(array):
        array = array.resolve_neg()
        return array.float() if str(array.dtype) == "torch.bfloat16" else array
    return array


def stays_in_jax(array: Any) -> bool:
    """Return whether an array of JAX is worked with by JAX, where it is.

    JAX computes in float64 only where that is switched on, and eigenvalues in float32 are too
    coarse for ranks. On the CPU, NumPy does the same without compiling for each shape.
    """
    if not sys.modules["jax"].config.jax_enable_x64:
        return False
    devices = array.devices()
    return len(devices) == 1 and all(device.platform not in JAX_BY_NUMPY for device in devices)


def is_real(array: Any) -> bool:
    """Return whether a value is an array of real floats of 16 bits or more.

    Of NumPy or the array API; neither computes with those of 8 bits and less.
    """
    if not hasattr(array, "dtype") or not hasattr(array, "shape") or array.dtype.itemsize < 2:
        return False
    import array_api_compat

    if not array_api_compat.is_array_api_obj(array):
        return False
    return bool(namespace(array).isdtype(array.dtype, "real floating"))


def is_finite(array: Array) -> bool:
    """Return whether all values are finite."""
    return bool(namespace(array).isfinite(array).all())


def epsilon(array: Array) -> float:
    """Return the machine epsilon of an array's dtype."""
    return float(namespace(array).finfo(array.dtype).eps)


def host(array: Any) -> Array:
    """Return an array as one of NumPy's."""
    if isinstance(array, np.ndarray):
        return array
    import array_api_compat

    if not array_api_compat.is_jax_array(array):  # JAX knows no device by a name
        array = array_api_compat.to_device(array, "cpu")
    on_host: Array = np.asarray(array)
    return on_host


def like(array: Any, other: Array) -> Array:
    """Move an array to the library and device of another one; its dtype stays."""
    if isinstance(other, np.ndarray):
        return host(array)
    import array_api_compat

    # Memory that cannot be written to, or that runs backwards, is none for PyTorch to share.
    shared = isinstance(array, np.ndarray)
    if shared and (not array.flags.writeable or min(array.strides, default=0) < 0):
        array = array.copy()
    moved: Array = namespace(other).asarray(array, device=array_api_compat.device(other))
    return moved


def cast(array: Array, dtype: Any) -> Array:
    """Convert an array to a dtype of its namespace; return itself if it has that already."""
    if isinstance(array, np.ndarray):
        return array.astype(dtype, copy=False)
    converted: Array = namespace(array).astype(array, dtype, copy=False)
    return converted


def double(array: Array) -> Array:
    """Convert an array to float64."""
    return cast(array, namespace(array).float64)


def is_single(array: Array) -> bool:
    """Return whether an array is of float32."""
    return bool(array.dtype == namespace(array).float32)


def single(array: Array) -> Array:
    """Convert an array to float32."""
    return cast(array, namespace(array).float32)


def over(array: Array, scale: float) -> Array:
    """Divide an array by a number, in float64."""
    if isinstance(array, np.ndarray):
        quotient: Array = np.divide(array, scale, dtype=np.float64)
        return quotient
    return double(array) / scale


def inner(a: Array, b: Array) -> float:
    """Return the sum of products of two arrays of one shape."""
    if isinstance(a, np.ndarray):
        return float(np.vdot(a, b))
    return float(namespace(a).sum(a * b))


def permuted(array: Array, axes: tuple[int, ...]) -> Array:
    """Permute the axes of an array."""
    view: Array = namespace(array).permute_dims(array, axes)
    return view


def stacked(arrays: Sequence[Array]) -> Array:
    """Stack arrays of one shape along a new first axis."""
    stack: Array = namespace(arrays[0]).stack(tuple(arrays))
    return stack


def contiguous(array: Array) -> Array:
    """Return an array with its elements in C order, a copy where they are not."""
    if isinstance(array, np.ndarray):
        return np.ascontiguousarray(array)
    # PyTorch copies with the strides that it finds; flattened, an array is in C order.
    flat = namespace(array).asarray(array.reshape(-1), copy=True)
    copy: Array = flat.reshape(array.shape)
    return copy


def copied(array: Array) -> Array:
    """Copy an array, with its elements in C order."""
    if isinstance(array, np.ndarray):
        return np.array(array, order="C")
    return contiguous(array)


def read_only(array: Array) -> Array:
    """Return a view that cannot be written to; another library has none: the array itself."""
    if not isinstance(array, np.ndarray):
        return array
    view = array.view()
    view.flags.writeable = False
    return view


def takes_no_memory(array: Array) -> bool:
    """Return whether all elements of an array are a single number in memory."""
    return isinstance(array, np.ndarray) and array.size > 1 and not any(array.strides)


def norms(array: Array, axis: int) -> Array:
    """Return the Euclidean norms along an axis, which stays with length 1."""
    return namespace(array).sqrt((array * array).sum(axis=axis, keepdims=True))  # type: ignore[no-any-return]  # the namespace is any
