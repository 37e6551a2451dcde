"""The layers that one policy decides on, and what the rest of the model costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import overload

from rankfold.layers.layer import Layer
from rankfold.ops import Cost


@dataclass(frozen=True, eq=False)
class LayerGroup(Sequence[Layer]):
    """The argument of `Policy.allocate`: layers in the model's order, and what surrounds them.

    Attributes:
        layers: those to decide on.
        cost_elsewhere: what everything else in the model costs, with what was decided on it.
        original_cost: what the original model costs.
        model_seconds: measures one forward pass of the original model, in seconds.
        executor: works on the layers; None for one after the other.
    """

    layers: tuple[Layer, ...]
    cost_elsewhere: Cost
    original_cost: Cost
    model_seconds: Callable[[], float] = lambda: 0.0
    executor: Executor | None = None

    @classmethod
    def of(cls, layers: Sequence[Layer]) -> LayerGroup:
        """Take any layers for a whole model; a group stays what it is."""
        # Policies take any sequence of layers, in tests and notebooks for instance; taken for a
        # whole model these have nothing around them.
        if isinstance(layers, cls):
            return layers
        total = sum((layer.cost(layer.op) for layer in layers), Cost(0, 0))
        return cls(tuple(layers), Cost(0, 0), total)

    def __len__(self) -> int:
        return len(self.layers)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Layer]: ...
    def __getitem__(self, index: int | slice) -> Layer | Sequence[Layer]:
        return self.layers[index]
