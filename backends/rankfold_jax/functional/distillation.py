"""A compressed model, as a pure function, in training towards the outputs of the original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import optax

from rankfold.adapters.distils import LARGEST_GRADIENT, SMALLEST_SIZE
from rankfold.calibration.batches import Calibration
from rankfold.calibration.losses import Divergence, fails_in_training
from rankfold.errors import RankfoldError
from rankfold.faults import let_through
from rankfold_jax.functional import losses
from rankfold_jax.functional.inputs import Inputs
from rankfold_jax.functional.pure_function import PureModel

Model = TypeVar("Model")


class FlaxStudent(Generic[Model]):
    """See `rankfold.adapters.distils.Student`.

    Args:
        model: the original.
        small: the compressed model.
        held_out: examples that are not trained on, and the loss.
        rebuilt: from the arrays of `small` to the model.
    """

    def __init__(
        self,
        model: PureModel,
        small: PureModel,
        held_out: Calibration,
        rebuilt: Callable[[Sequence[Any]], Model],
    ) -> None:
        self._model, self._small = model, small
        self._held_out, self._rebuilt = held_out, rebuilt
        self._trained = [
            leaf
            for leaf in small.params
            if jnp.issubdtype(jnp.result_type(small.values[leaf]), jnp.floating)
        ]
        if not self._trained:
            raise RankfoldError("distil: the compressed model has no floating-point parameters")
        values = [jnp.asarray(small.values[leaf]) for leaf in self._trained]
        # In float32 at least: the last steps are smaller than bfloat16 can tell from none.
        self._masters = [v.astype(jnp.promote_types(v.dtype, jnp.float32)) for v in values]
        self._sizes = [
            max(SMALLEST_SIZE, float(jnp.sqrt(jnp.square(master).mean())))
            for master in self._masters
        ]
        self._adam = optax.chain(optax.clip_by_global_norm(LARGEST_GRADIENT), optax.scale_by_adam())
        self._state = self._adam.init(self._masters)
        self._kept = self._masters
        self._steps: list[tuple[Any, Any]] = []
        programs = small.programs(held_out.inputs)
        self._checks = [(program, arrays) for program, arrays in programs]
        self._targets = losses.outputs_of(model, held_out)

    def step(self, inputs: Any, rate: float) -> None:
        """Take one step of Adam on a batch."""
        whole = Inputs(inputs)
        compiled = next((s for known, s in self._steps if known == whole.signature), None)
        if compiled is None:
            compiled = jax.jit(self._step_for(whole))
            self._steps.append((whole.signature, compiled))
        try:
            self._masters, self._state = compiled(
                self._masters,
                self._state,
                self._small.values,
                self._model.values,
                whole.arrays,
                [rate * size for size in self._sizes],
            )
        except RankfoldError:
            raise
        except Exception as error:  # whatever a model raises on these inputs
            let_through(error)
            raise fails_in_training(whole.examples, error) from error

    def held_out_loss(self) -> float:
        """Return the loss on the held-out examples."""
        total, values = Divergence(), self._values(self._masters, self._small.values)
        for index, (program, arrays) in enumerate(self._checks):
            outputs = program.rebuilt(program.compiled(values, arrays))
            total.add(self._held_out, index, self._targets[index], outputs, losses.READER)
        return total.value[1]

    def keep(self) -> None:
        """Note the parameters as they are now."""
        self._kept = self._masters  # arrays of JAX do not change

    def restore(self) -> None:
        """Go back to the parameters that were noted last, and forget the steps taken."""
        self._masters, self._state = self._kept, self._adam.init(self._kept)

    def kept(self) -> Model:
        """Return a copy of the compressed model with the parameters that were noted last."""
        return self._rebuilt(self._values(self._kept, self._small.values))

    def _values(self, masters: Sequence[Any], values: Sequence[Any]) -> list[Any]:
        """Return the arrays of the model with others for the trained ones, of the same dtypes."""
        changed = list(values)
        for leaf, master in zip(self._trained, masters, strict=True):
            changed[leaf] = master.astype(jnp.result_type(values[leaf]))
        return changed

    def _step_for(self, inputs: Inputs) -> Callable[..., Any]:
        """Return a step as a pure function, for inputs of one kind."""

        def step(
            masters: Any, state: Any, small: Any, model: Any, arrays: Any, rates: Any
        ) -> tuple[Any, Any]:
            target = self._model.function(model, inputs, arrays)

            def loss(masters: Any) -> jax.Array:
                outputs = self._small.function(self._values(masters, small), inputs, arrays)
                return losses.distance(self._held_out.loss, target, outputs, inputs.examples)

            moves, state = self._adam.update(jax.grad(loss)(masters), state)
            moved = [
                master - rate * move
                for master, rate, move in zip(masters, rates, moves, strict=True)
            ]
            return moved, state

        return step
