"""The layers that one policy decides on, and what the rest of the model costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor

from rankfold.layers.layer import Layer
from rankfold.ops import Cost


class Group(list[Layer]):
    """The layers that one policy decides on.

    Args:
        layers: in the model's order.
        rest: what everything else in the model costs, with what was decided on it.
        total: what the original model costs.
        measure: gives the seconds of one forward pass of the model.
        executor: works on the layers; None for one after the other.
        threads: how many BLAS takes meanwhile; None for its own choice.

    Attributes:
        executor: as given.
        threads: as given.
        notes: what the policy has to say of the whole; it may append to them.
        seconds: of one forward pass of the model (before, after), where the policy predicts them.
    """

    def __init__(
        self,
        layers: Iterable[Layer],
        rest: Cost,
        total: Cost,
        measure: Callable[[], float] = lambda: 0.0,
        executor: Executor | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(layers)
        self.executor = executor
        self.threads = threads
        self.rest = rest
        self.total = total
        self.measure = measure
        self.seconds: tuple[float, float] | None = None
        self.notes: list[str] = []
