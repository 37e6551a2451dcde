"""`Calibration`: batches of a model's inputs, and the loss that errors are measured by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from rankfold.errors import RankfoldError
from rankfold.linalg import Array

Loss: TypeAlias = str | Callable[[Any, Any], Any]
HasExamples: TypeAlias = Callable[[Any], bool]
LOSSES = ("outputs", "cross_entropy")
_HELD_EVERY = 4
"""One example in so many is held out: three quarters still determine the fits."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Batches of inputs, and of whatever else the loss takes (labels, for example).

    Attributes:
        batches: as they were given.
        inputs: what the model is called with, one per batch: an array, a tuple or list of
            positional or a mapping of keyword arguments.
        loss: "cross_entropy" (the outputs are logits; labels are drawn from the model's own
            prediction), "outputs" (any change of the outputs counts, by its square), or a function
            of (outputs, batch) that gives a scalar of the framework.
        has_examples: the framework's rule for which arrays have an axis of examples in front; None
            for all but scalars.
    """

    batches: tuple[Any, ...]
    inputs: tuple[Any, ...]
    loss: Loss
    has_examples: HasExamples | None = None

    @property
    def loss_name(self) -> str:
        """Name of the loss, for texts."""
        if isinstance(self.loss, str):
            return self.loss
        return getattr(self.loss, "__qualname__", type(self.loss).__name__)

    @property
    def examples(self) -> int:
        """Number of examples of all batches."""
        return sum(map(self.examples_of, self.inputs))

    def examples_of(self, inputs: Any) -> int:
        """Return the number of examples of a batch by its inputs."""
        return examples(inputs, self.has_examples)

    def held_out(self) -> Calibration:
        """Return the examples that no weight is fitted to, by the rule of `is_held_out`.

        Arrays whose first axis counts the examples of their batch are cut; whatever else there is
        in a batch stays. With a single example it is everything.
        """
        return self._part(held_out=True)

    def fitted(self) -> Calibration:
        """Return the examples that weights are fitted to: those that `held_out` leaves."""
        return self._part(held_out=False)

    def _part(self, *, held_out: bool) -> Calibration:
        counts = [self.examples_of(inputs) for inputs in self.inputs]
        numbers = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
        chosen = [np.flatnonzero(is_held_out(part, sum(counts)) == held_out) for part in numbers]
        if not any(map(len, chosen)):
            return self
        kept = [
            tuple(_some_examples(value, count, indices) for value in (batch, inputs))
            for batch, inputs, count, indices in zip(
                self.batches, self.inputs, counts, chosen, strict=True
            )
            if len(indices)
        ]
        batches, inputs = zip(*kept, strict=True)
        return replace(self, batches=batches, inputs=inputs)

    @staticmethod
    def of(
        batches: Any, example: Any, loss: Loss | None, has_examples: HasExamples | None = None
    ) -> Calibration:
        """Build it from what a user passes.

        Args:
            batches: an iterable of batches, or a single array or mapping as the only batch.
            example: the example inputs; of a batch that is a tuple or list, as many leading items
                are the inputs as there are in these, and of a mapping those of the same names.
                None takes all of a batch.
            loss: one of `LOSSES`, a function, or None for "outputs".
            has_examples: the framework's rule for which arrays have an axis of examples; None for
                all but scalars.

        Raises:
            RankfoldError: there is no batch, a batch is empty or has not what the example inputs
                have, or the loss is unknown.
        """
        loss = "outputs" if loss is None else loss
        if not callable(loss) and not (isinstance(loss, str) and loss in LOSSES):
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
        inputs = tuple(_inputs(b, example, i) for i, b in enumerate(every))
        for index, arrays in enumerate(inputs):
            _check_axes(arrays, example, index)
        return Calibration(every, inputs, loss, has_examples)


def is_held_out(numbers: Any, total: int) -> Any:
    """Tell which examples are held out of every fit: a quarter, the last one where there are few.

    Args:
        numbers: of examples, an integer array of any framework.
        total: how many examples there are.

    Returns:
        A boolean array like `numbers`.
    """
    if total >= _HELD_EVERY:
        return numbers % _HELD_EVERY == _HELD_EVERY - 1
    return (numbers == total - 1) & (total > 1)


def examples(inputs: Any, has_examples: HasExamples | None = None) -> int:
    """Return the number of examples of a batch: the length of its first array's first axis.

    Args:
        inputs: of a batch.
        has_examples: tells which arrays have an axis of examples in front, others are passed over;
            None for all but scalars, which have no axis.
    """
    for array in _arrays(inputs):
        if len(array.shape) and (has_examples is None or has_examples(array)):
            return max(1, int(array.shape[0]))
    return 1


def _arrays(value: Any) -> Iterator[Any]:
    if hasattr(value, "shape"):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _arrays(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _arrays(item)


def _some_examples(value: Any, count: int, chosen: Array) -> Any:
    """Select examples of a batch of `count` by their indices."""
    if hasattr(value, "shape"):
        return value[chosen] if len(value.shape) and value.shape[0] == count else value
    if isinstance(value, Mapping):
        return {name: _some_examples(item, count, chosen) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_some_examples(item, count, chosen) for item in value)
    return value


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


def _check_axes(inputs: Any, example: Any, index: int) -> None:
    """Check that a batch has examples, and no fewer axes than the inputs have."""
    shapes = [tuple(array.shape) for array in _arrays(inputs)]
    if (0,) in (shape[:1] for shape in shapes[:1]):
        raise RankfoldError(
            f"calibration: batch {index} of shape {shapes[0]} is empty; leave it out"
        )
    for array, like in zip(_arrays(inputs), _arrays(example), strict=False):
        if len(array.shape) < len(like.shape):
            raise RankfoldError(
                f"calibration: batch {index} has an array of shape {tuple(array.shape)} where "
                f"inputs= has {tuple(like.shape)}; give batches with an axis of examples in front"
            )
