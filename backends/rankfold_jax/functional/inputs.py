"""Example inputs, taken apart into arrays that are traced and the rest that stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankfold.calibration.batches import examples
from rankfold.calibration.input_mistakes import told_of
from rankfold.errors import RankfoldError


class Inputs:
    """Positional and keyword arguments, taken apart into arrays and the rest.

    Args:
        inputs: one array, a tuple or list of positional or a mapping of keyword arguments. Arrays
            may be `jax.ShapeDtypeStruct`; whatever is no array (flags, None) is passed on as it is.

    Attributes:
        arrays: the arrays, which a trace may replace.
        examples: how many there are.
        names: of the arrays that `call` gave last, as they stand in what the function returned.
    """

    def __init__(self, inputs: Any) -> None:
        if isinstance(inputs, Mapping):
            whole: Any = ((), dict(inputs))
        elif isinstance(inputs, tuple | list):
            whole = (tuple(inputs), {})
        else:
            whole = ((inputs,), {})
        self.examples = examples(inputs, has_examples)
        self.names: list[str] = []
        # Flags and strings are leaves, too: a traced flag could not be branched on.
        self._leaves, self._tree = jax.tree.flatten(whole)
        self._places = [i for i, leaf in enumerate(self._leaves) if is_array(leaf)]
        self.arrays = [self._leaves[i] for i in self._places]

    def call(self, function: Callable[..., Any], arrays: list[Any]) -> list[Any]:
        """Return the arrays that a function gives for the arguments with other arrays in place."""
        leaves = jax.tree_util.tree_leaves_with_path(self.output(function, arrays))
        # Set while the function is traced; the names are static and so the same for every call.
        self.names = [jax.tree_util.keystr(path) for path, leaf in leaves if is_array(leaf)]
        return [leaf for _, leaf in leaves if is_array(leaf)]

    def output(self, function: Callable[..., Any], arrays: Sequence[Any]) -> Any:
        """Return what a function gives for these arguments with other arrays in place."""
        args, kwargs = self.whole(arrays)
        return function(*args, **kwargs)

    def whole(self, arrays: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments with other arrays in place."""
        leaves = list(self._leaves)
        for index, array in zip(self._places, arrays, strict=True):
            # The other leaves are those of the example inputs.
            leaves[index] = array
        args, kwargs = jax.tree.unflatten(self._tree, leaves)
        return args, kwargs

    @property
    def arguments(self) -> Any:
        """Positional arguments, or those by their names, as they were passed."""
        args, kwargs = self.whole(self.arrays)
        return kwargs or args

    @property
    def signature(self) -> tuple[Any, ...]:
        """Value that is equal for inputs that one trace serves."""
        # A Python number counts as static: another value may take another branch.
        shapes = tuple((jnp.shape(array), jnp.result_type(array)) for array in self.arrays)
        places = set(self._places)
        rest = tuple(leaf for i, leaf in enumerate(self._leaves) if i not in places)
        return self._tree, tuple(self._places), shapes, rest


def failed(error: Exception, inputs: Inputs) -> RankfoldError:
    """Return the error for a model that fails on its example inputs."""
    return RankfoldError(f"inputs: the model fails on them with {told_of(error, inputs.arguments)}")


def has_examples(array: Any) -> bool:
    """Return whether an array has an axis of examples in front: a key of a generator has none.

    Keys are arrays of a dtype of their own, or two words of 32 bits.
    """
    kind = str(getattr(array, "dtype", ""))
    return not (kind.startswith("key<") or (kind == "uint32" and tuple(array.shape) == (2,)))


def is_array(value: Any) -> bool:
    """True if a value is traced, or a shape that stands for one that is."""
    return isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)
