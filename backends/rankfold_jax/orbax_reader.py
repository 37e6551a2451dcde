"""An orbax checkpoint, the folder of one tree of arrays, read array by array."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
import orbax.checkpoint as ocp

from rankfold.console import some
from rankfold.errors import RankfoldError
from rankfold.faults import told
from rankfold.linalg import Array
from rankfold.storage.safetensors_header import Entry, Header

_NAMES = {
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    "bfloat16": "BF16",
    "bool": "BOOL",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
_CONTAINERS = ("model", "state", "model_state")
"""Keys under which training programs store the state of the model, best known first; "params" is
none of them, as it is a collection of Linen's."""
_TRAINING = frozenset({"opt_state", "optimizer", "step"})
"""Keys of what is beside the model's arrays in the state of a training program."""
_VARIABLE = "value"
"""The key of the array in a Variable of NNX."""

_Paths: TypeAlias = dict[tuple[str, ...], int]
"""The keys that lead to each leaf, and its index among the leaves."""


class OrbaxFolder:
    """An orbax checkpoint behind the interface of `rankfold.storage.safetensors_file.File`.

    The arrays are named by their keys with dots between them. The state of NNX has a key for the
    array of each Variable, which the names leave out.

    Args:
        folder: that has the file `_METADATA`.
        key: of the tree that is meant, of several in the checkpoint; "a/b" for one within another.
            Of that, nothing that is under "opt_state", "optimizer" or "step"; and where any of
            these is beside or within "model", "state" or "model_state", what is under it alone.
    """

    def __init__(self, folder: Path, key: str | None = None) -> None:
        self._folder = folder.absolute()
        self._key = key
        self._handler = ocp.PyTreeCheckpointHandler()
        self._read: tuple[str, Array] | None = None

    @cached_property
    def _tree(self) -> Any:
        """The tree with shape and dtype of an array in the place of each."""
        try:
            return self._handler.metadata(self._folder).tree
        except Exception as error:  # of orbax, tensorstore or a damaged file: no common class
            raise self._unread(error) from error

    @cached_property
    def _paths(self) -> _Paths:
        """The keys that lead to each leaf, and its index among the leaves."""
        leaves = jax.tree_util.tree_leaves_with_path(self._tree)
        return {
            tuple(jax.tree_util.keystr((key,), simple=True) for key in path): index
            for index, (path, _) in enumerate(leaves)
        }

    @cached_property
    def _chosen(self) -> tuple[dict[str, int], tuple[str, ...]]:
        """The index of each array of the model by name, and notes on how they were chosen."""
        paths, notes = self._state()
        if all(path and path[-1] == _VARIABLE for path in paths):
            paths = {path[:-1]: index for path, index in paths.items()}
        names = {".".join(path): index for path, index in paths.items()}
        if len(names) < len(paths):
            raise RankfoldError(
                f"{str(self._folder)!r} has keys with dots, by which two arrays have one name; "
                "save the state of the model with other keys"
            )
        return names, notes

    def _state(self) -> tuple[_Paths, tuple[str, ...]]:
        """Return the part of `_paths` that is the model's, and notes that say so."""
        state, notes = self._paths, list[str]()
        if self._key is not None:
            state = _below(state, self._key.split("/"))
            if not state:
                has = some([repr(head) for head in _heads(self._paths)])
                raise RankfoldError(f"key: {str(self._folder)!r} has no {self._key!r}, but {has}")
        # A state of training may lie within another, beside a configuration for instance.
        while (container := _container(state)) is not None:
            others = some([repr(head) for head in _heads(state) if head != container])
            notes.append(
                f"tensors from {container!r} of the checkpoint, which has others in {others}: key= "
                "(--key on the command line) chooses"
            )
            state = _below(state, (container,))
        left = [head for head in _heads(state) if head in _TRAINING]
        if left:
            notes.append(f"without {some(left)}, which belong to the training")
            state = {path: i for path, i in state.items() if not path or path[0] not in left}
        return state, tuple(notes)

    @cached_property
    def header(self) -> Header:
        """Name, dtype, shape and size in bytes of every array."""
        leaves = jax.tree.leaves(self._tree)
        names, notes = self._chosen
        entries = {}
        for name, index in names.items():
            dtype = getattr(leaves[index], "dtype", None)
            if dtype is None or np.dtype(dtype).name not in _NAMES:
                what = dtype or type(leaves[index]).__name__.removesuffix("Metadata")
                raise RankfoldError(
                    f"{str(self._folder)!r}: {name!r} is {what}, which a safetensors file does not "
                    "hold; save the arrays of the model alone, or choose them by key="
                )
            shape = tuple(leaves[index].shape)
            size = math.prod(shape) * np.dtype(dtype).itemsize
            entries[name] = Entry(name, _NAMES[np.dtype(dtype).name], shape, 0, size)
        return Header(entries, {}, notes)

    def data(self, entry: Entry) -> Array:
        """Return the bytes of an array, or of a part of it; the last array is kept."""
        if self._read is None or self._read[0] != entry.name:
            self._read = None  # before the next one is in memory
            array = np.ascontiguousarray(self._restored(entry.name))
            self._read = entry.name, array.reshape(-1).view(np.uint8)
        return self._read[1][entry.begin : entry.begin + entry.size]

    def _restored(self, name: str) -> Array:
        """Read an array."""
        leaves, tree = jax.tree.flatten(self._tree)
        index = self._chosen[0][name]
        wanted = [ocp.PLACEHOLDER] * len(leaves)
        wanted[index] = leaves[index]
        # As NumPy's: the devices that the array was saved from need not be there.
        numpy = [ocp.RestoreArgs(restore_type=np.ndarray)] * len(leaves)
        how = ocp.args.PyTreeRestore(
            item=jax.tree.unflatten(tree, wanted), restore_args=jax.tree.unflatten(tree, numpy)
        )
        try:
            restored = self._handler.restore(self._folder, args=how)
        except Exception as error:  # as in `_tree`
            raise self._unread(error) from error
        array: Array = np.asarray(jax.tree.leaves(restored)[index])
        if array.dtype != leaves[index].dtype or array.shape != leaves[index].shape:
            raise RankfoldError(f"{str(self._folder)!r}: {name!r} is not what its metadata says")
        return array

    def _unread(self, error: Exception) -> RankfoldError:
        return RankfoldError(
            f"{str(self._folder)!r} cannot be read as an orbax checkpoint: {told(error)}; restore "
            "it where it was saved, and save the arrays of the model alone"
        )


def _heads(paths: _Paths) -> list[str]:
    """Return the first keys of paths, each once."""
    return list(dict.fromkeys(path[0] for path in paths if path))


def _below(paths: _Paths, key: Sequence[str]) -> _Paths:
    """Return the paths that begin with a key, without it."""
    size = len(key)
    return {path[size:]: i for path, i in paths.items() if path[:size] == tuple(key)}


def _container(paths: _Paths) -> str | None:
    """Return the key under which the model's arrays lie, as others belong to the training."""
    container = next((key for key in _CONTAINERS if key in _heads(paths)), None)
    if container is None:
        return None
    # Beside and above anything else it may be a part of the model's own.
    keys = {*_heads(paths), *_heads(_below(paths, (container,)))}
    return container if keys & _TRAINING else None
