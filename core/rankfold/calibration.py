"""`Calibration`: the batches that show what a model is used for, and the loss it is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from rankfold.errors import RankfoldError

Loss: TypeAlias = str | Callable[[Any, Any], Any]
LOSSES = ("outputs", "cross_entropy")


@dataclass(frozen=True, eq=False)
class Calibration:
    """Batches of inputs, with what may stand behind the inputs for the loss.

    Attributes:
        batches: as they were given.
        inputs: what the model is called with, one per batch: an array, a tuple or list of
            positional or a mapping of keyword arguments.
        loss: "cross_entropy" (the outputs are logits; labels are drawn from the model's own
            prediction), "outputs" (any change of the outputs counts, by its square), or a function
            of (outputs, batch) that gives a scalar of the framework.
    """

    batches: tuple[Any, ...]
    inputs: tuple[Any, ...]
    loss: Loss

    @property
    def loss_name(self) -> str:
        """The loss as text."""
        return self.loss if isinstance(self.loss, str) else _name(self.loss)

    @staticmethod
    def of(batches: Any, example: Any, loss: Loss | None) -> Calibration:
        """Reads what a user gave.

        Args:
            batches: an iterable of batches, or a single array or mapping as the only batch.
            example: the example inputs; of a batch that is a tuple or list, as many leading items
                are the inputs as there are in these, and of a mapping those of the same names.
                None takes batches as a whole.
            loss: one of `LOSSES`, a function, or None for "outputs".

        Raises:
            RankfoldError: there is no batch, a batch has not what the example inputs have, or the
                loss is unknown.
        """
        loss = "outputs" if loss is None else loss
        if not callable(loss) and loss not in LOSSES:
            raise RankfoldError(
                f"loss {loss!r}; use one of {LOSSES} or a function of (outputs, batch)"
            )
        single = isinstance(batches, Mapping) or hasattr(batches, "shape")
        if not single and not isinstance(batches, Iterable):
            raise RankfoldError(
                f"calibration: {type(batches).__name__}; give an iterable of batches of inputs"
            )
        every = (batches,) if single else tuple(batches)
        if not every:
            raise RankfoldError("calibration: no batch; give at least one batch of inputs")
        return Calibration(every, tuple(_inputs(b, example, i) for i, b in enumerate(every)), loss)


def _inputs(batch: Any, example: Any, index: int) -> Any:
    if isinstance(batch, Mapping):
        if not isinstance(example, Mapping):
            return batch
        missing = [name for name in example if name not in batch]
        if missing:
            raise RankfoldError(
                f"calibration: batch {index} has no {missing[0]!r}, which inputs= has; it has "
                f"{', '.join(map(str, batch))}"
            )
        return {name: batch[name] for name in example}
    if not isinstance(batch, (tuple, list)):
        return batch
    if example is None or isinstance(example, Mapping):
        return tuple(batch)
    wanted = len(example) if isinstance(example, (tuple, list)) else 1
    if len(batch) < wanted:
        raise RankfoldError(
            f"calibration: batch {index} has {len(batch)} items, fewer than the {wanted} of inputs="
        )
    return tuple(batch[:wanted])


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
