"""Optional protocols of an adapter for models that are compressed already.

Training goes on with them: by name of their stages, over several compressions in place, under
optimizers that hold their parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class NamesStages(Protocol):
    """Optional: tells the stages of the chains in a model."""

    def stages(self, model: Any) -> Mapping[str, Sequence[str]]:
        """Return the paths of stages by path of the layer that their chain stands for.

        Only stages of the framework's own classes, which other libraries know, are listed.
        """


@runtime_checkable
class ExpandsInPlace(Protocol):
    """Optional: a compression can be undone in the compressed model itself."""

    def expand(self, model: Any, small: Any, paths: Sequence[str]) -> None:
        """Put layers in the place of their chains, as `Expands.expanded` does in a copy.

        Args:
            model: the model that was compressed, or a copy of it.
            small: its compressed form, which is changed, all at once.
            paths: of the layers that chains stand for in it.

        Raises:
            Refused: what stands in the place of a layer is not a chain that `build` gave.
            RankfoldError: something holds a chain where no layer can take its place.
        """


@runtime_checkable
class FollowsParameters(Protocol):
    """Optional: optimizers can go on with the parameters of a model that is changed."""

    def following(self, model: Any, optimizers: Sequence[Any]) -> AbstractContextManager[None]:
        """Return a context in which the model's layers are exchanged.

        When it ends, however it does, each optimizer has the new parameters in place of those that
        are gone, with the same options, and the state of all others as it was.

        Args:
            model: the model, before the change.
            optimizers: that hold some of its parameters.

        Raises:
            RankfoldError: one of them is no optimizer of this framework.
        """
