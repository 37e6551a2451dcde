"""A visitor of layers that a function decides on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rankfold.linalg import Array
from rankfold.ops import Chain


@dataclass(frozen=True, eq=False)
class Visits:
    """A `LayerVisitor`.

    Attributes:
        chain: gives the chain of a layer, as a `LayerVisitor` does.
        bases: by path, what the inputs of a layer are projected on for its sums.
    """

    chain: Callable[..., Chain]
    bases: Mapping[str, Array] = field(default_factory=dict)

    def basis(self, path: str, groups: Sequence[int] | None = None, /) -> Array | None:
        """Return the basis of a layer, or of some of its groups."""
        basis = self.bases.get(path)
        return basis if basis is None or groups is None else basis[list(groups)]

    def __call__(self, *visit: object) -> Chain:
        """Return the chain of a layer or of some of its groups."""
        return self.chain(*visit)
