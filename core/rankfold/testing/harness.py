"""`Harness`: what the conformance kit must be told about a framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rankfold.adapters.base import Adapter
from rankfold.linalg import Array
from rankfold.ops import Op


class Unsupported(Exception):  # noqa: N818 - not an error: the check is skipped with this reason
    """The framework lacks something; the check that needs it is skipped."""


class Harness(ABC):
    """Make and run models of a framework for the checks.

    Models are plain sequences of layers without anything between them. Arrays go in and come out
    in the layout of `rankfold.ops.reference.forward`, channels first; a harness for a framework
    with channels last moves the axis. The methods that are not abstract are optional: what is not
    written is `Unsupported`, and the checks that need it are skipped.

    Attributes:
        dtypes: the names of the float types of weights that the framework has.
    """

    dtypes: tuple[str, ...] = ("float32",)

    @abstractmethod
    def adapter(self) -> Adapter:
        """Return a fresh adapter."""

    @abstractmethod
    def model(self, ops: Sequence[Op], dtype: str = "float32") -> Any:
        """Return a model that applies a native layer for each op, one after the other.

        Raises:
            Unsupported: the framework has no layer for an op.
        """

    @abstractmethod
    def call(self, model: Any, x: Array) -> Array:
        """Return the model's output in eval mode, as a NumPy array of any float dtype."""

    @abstractmethod
    def inputs(self, x: Array, dtype: str = "float32") -> Any:
        """Return an input as the user would pass it as `inputs=` to a model of that dtype."""

    @abstractmethod
    def state(self, model: Any) -> Mapping[str, Array]:
        """Return a copy of every parameter by name, shared and tied ones once."""

    def shared(self, op: Op) -> Any:
        """Return a model that applies one and the same layer twice."""
        raise Unsupported("models with a shared layer")

    def tied(self, op: Op) -> Any:
        """Return a model that applies two layers with one common weight, not a copy of it."""
        raise Unsupported("models with tied weights")

    def gradients(self, model: Any, x: Array) -> Sequence[Array]:
        """Return the gradient of the sum of the squared outputs for every parameter."""
        raise Unsupported("gradients")

    def compiled(self, model: Any) -> Callable[[Array], Array]:
        """Return the model compiled, as a function like `call`."""
        raise Unsupported("compilation")

    def set_training(self, model: Any, training: bool) -> None:
        """Switch between train and eval mode."""
        raise Unsupported("modes")

    def training(self, model: Any) -> Sequence[bool]:
        """Return the mode of every layer of a model."""
        raise Unsupported("modes")


def as_float64(array: Any) -> Array:
    """Return an array of any float dtype, those of ml_dtypes included, as float64."""
    # NumPy's own routines know nothing of bfloat16 beyond storing and casting it.
    return np.asarray(array).astype(np.float64)
