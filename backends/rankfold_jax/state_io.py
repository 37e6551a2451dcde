"""Named arrays as a safetensors file, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.flax import load_file, save_file

from rankfold.errors import RankfoldError
from rankfold.storage.state_checks import check_alike, read_whole, renamed
from rankfold.storage.wrapper_prefixes import matched
from rankfold_jax.layouts.sharding import put
from rankfold_jax.versions import key_implementation


def save_arrays(arrays: Mapping[str, Any], file: Path) -> None:
    """Writes arrays; random keys as their data.

    Raises:
        RankfoldError: one has no values, or of a kind that such a file does not hold.
        OSError: the file cannot be written.
    """
    plain = {}
    for name, value in arrays.items():
        if isinstance(value, jax.ShapeDtypeStruct):
            raise RankfoldError(f"{name!r} of the model has only a shape, no values to save")
        if not isinstance(value, jax.Array | np.ndarray | np.generic | int | float | bool):
            raise RankfoldError(f"{name!r} of the model is a {type(value).__name__}, not an array")
        plain[name] = jnp.asarray(data_of(value))
    try:
        save_file(plain, file)
    except (SafetensorError, KeyError, ValueError) as error:
        raise RankfoldError(f"the model's arrays cannot be saved: {error}") from error


def load_arrays(
    files: Sequence[Path],
    wanted: Mapping[str, Any],
    optional: Collection[str] = (),
    aliases: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, jax.Array]:
    """Reads arrays, after checking every name, shape and dtype.

    Args:
        files: what `save_arrays` wrote, or a checkpoint in several files.
        wanted: for each name an array (or a shape) like the one to be read.
        optional: names of arrays that stay as they are where the files hold none of these.
        aliases: further names of arrays, any of which will do.

    Raises:
        RankfoldError: a file is damaged, or they do not hold just these.
    """
    file = files[0]
    stored = read_whole(files, load_file)
    known = matched(stored.keys(), wanted.keys()).values()
    kept = {} if set(known) & set(optional) else {name: wanted[name] for name in optional}
    further = aliases or {}
    arrays = renamed(file, stored, wanted.keys() - kept.keys(), further)
    loaded: dict[str, jax.Array] = {}
    for name, like in wanted.items():
        if name in kept:
            loaded[name] = like
            continue
        data = jax.eval_shape(data_of, like)
        array = next(arrays[known] for known in (name, *further.get(name, ())) if known in arrays)
        check_alike(file, name, (array.dtype, array.shape), (data.dtype, data.shape))
        loaded[name] = _like(array, like)
    return loaded


def data_of(value: Any) -> Any:
    """An array as it is, a typed random key as its numbers."""
    if hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(value)
    return value


def _like(array: jax.Array, like: Any) -> jax.Array:
    if hasattr(like, "dtype") and jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        array = jax.random.wrap_key_data(array, impl=key_implementation(like.dtype))
    if isinstance(like, jax.Array) and like.committed:
        return put(array, like.sharding)
    return array
