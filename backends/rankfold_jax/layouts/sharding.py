"""Names and places of sharded axes, handed on from a layer's arrays to those of its stages."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rankfold.linalg import Array, stays_in_jax
from rankfold_jax.layouts.base import Roles, keep


class Axes:
    """Axes of one array of a layer, with the roles they have.

    Args:
        roles: of the axes of the layer's array.
    """

    def __init__(self, roles: Roles) -> None:
        self._roles = roles

    def handed_on(self, entries: Any, roles: Roles, *, first: bool, last: bool) -> tuple[Any, ...]:
        """Return the entries for the axes of a stage's array, given those of the layer's.

        Args:
            entries: one per axis of the layer's array; missing ones count as None.
            roles: of the axes of the stage's array.
            first: whether the stage is the first of the chain.
            last: whether it is the last.
        """
        # A PartitionSpec may leave out trailing axes.
        padded = [*entries, *(None for _ in self._roles[len(entries) :])]
        named = dict(zip(self._roles, padded, strict=True))
        # Rank axes are not sharded: no axis of the layer says how.
        return tuple(named.get(role) if keep(role, first, last) else None for role in roles)

    def placed(
        self, array: Array, like: jax.Array, roles: Roles, *, first: bool, last: bool
    ) -> jax.Array:
        """Return a stage's array in the dtype and on the devices of the layer's."""
        numbers: Any = array if away(array) else np.asarray(array)
        cast = numbers.astype(like.dtype)
        # A shape that stands for an array, or one of NumPy, lies on no device.
        if not isinstance(like, jax.Array):
            return put(cast, None)
        sharding = like.sharding
        if isinstance(sharding, NamedSharding):
            spec = self.handed_on(sharding.spec, roles, first=first, last=last)
            whole = NamedSharding(sharding.mesh, _spec(*spec), memory_kind=sharding.memory_kind)
            return put(cast, _divisible(whole, cast.shape))
        # An array that was put on a device stays there. One that JAX has placed by default goes
        # wherever it is used, and so should the new one.
        if like.committed and len(sharding.device_set) == 1:
            return put(cast, sharding)
        return put(cast, None)


def put(array: Any, sharding: Any) -> jax.Array:
    """Return an array on the devices of a sharding; with None, where JAX puts one by default."""
    # Not `jax.numpy.asarray`, which compiles a copy for every shape.
    placed: jax.Array = jax.device_put(array, sharding)
    return placed


def _spec(*entries: Any) -> PartitionSpec:
    return PartitionSpec(*entries)  # type: ignore[no-untyped-call]  # JAX leaves it untyped


def epsilon(dtype: Any) -> float:
    """Return the machine epsilon of a float dtype, those of ml_dtypes included."""
    return float(jax.numpy.finfo(dtype).eps)  # type: ignore[no-untyped-call]  # JAX leaves it untyped


def _divisible(sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """Return the sharding, or one without axes where its mesh does not divide the shape."""
    try:
        # A rank need not be a multiple of the devices along an axis; JAX refuses uneven shards.
        sharding.shard_shape(shape)
    except ValueError:
        return NamedSharding(sharding.mesh, _spec())
    return sharding


def wide(x: Any) -> Any:
    """Return an array of floating-point numbers in float64, any other as it is."""
    floating = jax.numpy.issubdtype(x.dtype, jax.numpy.floating)
    return np.asarray(x).astype(np.float64) if floating else x


def to_array(array: Any) -> Array:
    """Return an array's numbers for an op, and zeros for one that has only a shape.

    They are NumPy's, or JAX's where decompositions compute by it. Float16 and bfloat16 come as
    float32, in which they are exact.
    """
    if isinstance(array, jax.ShapeDtypeStruct):
        return np.zeros(array.shape, np.float32)
    numbers: Any = array if away(array) else np.asarray(array)
    exact: Array = (
        numbers if numbers.dtype in (np.float32, np.float64) else numbers.astype(np.float32)
    )
    return exact


def away(array: Any) -> bool:
    """Return whether an array is worked with where it is, by JAX."""
    return isinstance(array, jax.Array) and stays_in_jax(array)
