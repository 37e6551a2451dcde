"""What a library does to tensors as it loads a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rankfold.linalg import Array


@dataclass(frozen=True, eq=False)
class Conversion:
    """A step by which a library makes tensors of a model when it loads the model's files.

    Attributes:
        sources: the names of the tensors in the files.
        targets: type ("F32", "BF16", ...) and shape of each tensor of the model, by name.
        convert: gives the arrays of all targets, by name, for those of all sources, by name;
            arrays have the dtypes of NumPy and of ml_dtypes.
    """

    sources: tuple[str, ...]
    targets: Mapping[str, tuple[str, tuple[int, ...]]]
    convert: Callable[[Mapping[str, Array]], Mapping[str, Array]]


@runtime_checkable
class LoadsRenamed(Protocol):
    """Fills a model from files that have other names for its tensors."""

    def load_renamed(self, model: Any, names: Mapping[str, str], file: Path, *more: Path) -> Any:
        """Fill the model as `load_weights` does, and return it.

        Args:
            model: to fill.
            names: of the model for the names in the files; others are as they are.
            file: of tensors.
            more: further files.
        """
