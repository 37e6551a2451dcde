"""Protocols for the inputs of a model: which arrays count examples, and what is made of arrays."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from rankfold.linalg import Array


@runtime_checkable
class TellsExamples(Protocol):
    """Optional: not every array of inputs has an axis of examples in front."""

    def has_examples(self, array: Any) -> bool:
        """Return whether the first axis of an array, which is no scalar, counts examples."""


@runtime_checkable
class TakesArrays(Protocol):
    """Optional: makes inputs of a model from arrays, where it does not take these themselves."""

    def input_of(self, model: Any, array: Array) -> Any:
        """Return an array as the model takes it: where it lives, real numbers in its own type."""
