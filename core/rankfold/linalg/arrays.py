"""Arrays of NumPy and of the array API, handled alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def namespace(array: Array) -> Any:
    """The array API namespace of an array."""
    if isinstance(array, np.ndarray):
        return np
    import array_api_compat

    return array_api_compat.array_namespace(array)


def taken(array: Any) -> Any:
    """What a user gives, as an array that decompositions can compute with.

    A tensor comes without its graph. Half precision of other libraries than NumPy, and bfloat16
    anywhere, comes as float32, in which it is exact. What is not on an accelerator in PyTorch or
    CuPy comes as NumPy's: JAX computes in float64 only where that is switched on. Anything else
    comes as it is.
    """
    if hasattr(array, "detach") and hasattr(array, "requires_grad"):
        array = array.detach()
    if isinstance(array, np.ndarray):
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        return array
    import array_api_compat

    if array_api_compat.is_jax_array(array):
        return taken(np.asarray(array))
    if array_api_compat.is_torch_array(array) and str(array.dtype) == "torch.bfloat16":
        return array.float()
    return array


def is_real(array: Any) -> bool:
    """Whether something is an array of floating-point numbers, of any library of the standard."""
    if isinstance(array, np.ndarray):
        return bool(array.dtype.kind == "f")
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        return False
    import array_api_compat

    if not array_api_compat.is_array_api_obj(array):
        return False
    return bool(namespace(array).isdtype(array.dtype, "real floating"))


def is_finite(array: Array) -> bool:
    """Whether all values are finite."""
    return bool(namespace(array).isfinite(array).all())


def epsilon(array: Array) -> float:
    """The machine epsilon of an array's dtype."""
    return float(namespace(array).finfo(array.dtype).eps)


def host(array: Any) -> Array:
    """An array as one of NumPy's."""
    if isinstance(array, np.ndarray):
        return array
    import array_api_compat

    on_host: Array = np.asarray(array_api_compat.to_device(array, "cpu"))
    return on_host


def like(array: Any, other: Array) -> Array:
    """An array where another one lives, in its own dtype."""
    if isinstance(other, np.ndarray):
        return host(array)
    import array_api_compat

    found: Array = namespace(other).asarray(array, device=array_api_compat.device(other))
    return found


def cast(array: Array, dtype: Any) -> Array:
    """An array in another dtype, one of its own namespace; itself if it has that already."""
    if isinstance(array, np.ndarray):
        return array.astype(dtype, copy=False)
    made: Array = namespace(array).astype(array, dtype, copy=False)
    return made


def double(array: Array) -> Array:
    """An array in float64."""
    return cast(array, namespace(array).float64)


def single(array: Array) -> Array:
    """An array in float32."""
    return cast(array, namespace(array).float32)


def over(array: Array, scale: float) -> Array:
    """An array over a number, in float64."""
    if isinstance(array, np.ndarray):
        quotient: Array = np.divide(array, scale, dtype=np.float64)
        return quotient
    return double(array) / scale


def inner(a: Array, b: Array) -> float:
    """The sum of products of two arrays of one shape."""
    if isinstance(a, np.ndarray):
        return float(np.vdot(a, b))
    return float(namespace(a).sum(a * b))


def permuted(array: Array, axes: tuple[int, ...]) -> Array:
    """An array with its axes in another order."""
    if isinstance(array, np.ndarray):
        return array.transpose(axes)
    made: Array = namespace(array).permute_dims(array, axes)
    return made


def stacked(arrays: Sequence[Array]) -> Array:
    """Arrays of one shape along a new first axis."""
    made: Array = namespace(arrays[0]).stack(tuple(arrays))
    return made


def contiguous(array: Array) -> Array:
    """An array with its elements in order, of memory of its own kind."""
    if isinstance(array, np.ndarray):
        return np.ascontiguousarray(array)
    made: Array = namespace(array).asarray(array, copy=True)
    return made


def copied(array: Array) -> Array:
    """An array of memory of its own, with its elements in order."""
    if isinstance(array, np.ndarray):
        return np.array(array, order="C")
    return contiguous(array)


def read_only(array: Array) -> Array:
    """A view that cannot be written to; of another library's array, which has none, itself."""
    if not isinstance(array, np.ndarray):
        return array
    view = array.view()
    view.flags.writeable = False
    return view


def takes_no_memory(array: Array) -> bool:
    """Whether all elements of an array are one and the same number in memory."""
    return isinstance(array, np.ndarray) and array.size > 1 and not any(array.strides)


def norms(array: Array, axis: int) -> Array:
    """The Euclidean norms along an axis, which stays with length 1."""
    return namespace(array).sqrt((array * array).sum(axis=axis, keepdims=True))  # type: ignore[no-any-return]  # the namespace is any
