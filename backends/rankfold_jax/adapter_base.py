"""Base of both Flax adapters, most of it on a model as a pure function of its arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from rankfold.adapters.base import LayerVisitor
from rankfold.adapters.distils import Student
from rankfold.calibration.batches import Calibration
from rankfold.calibration.moments import LayerMoments
from rankfold.errors import Refused
from rankfold.ops import Chain, Extent, Op
from rankfold.ops.reference import composed
from rankfold.progress import Advance
from rankfold_jax.calibration import moments
from rankfold_jax.functional import losses, timing
from rankfold_jax.functional.agreement import Reference
from rankfold_jax.functional.distillation import FlaxStudent
from rankfold_jax.functional.inputs import Inputs, has_examples
from rankfold_jax.functional.pure_function import PureModel
from rankfold_jax.layouts.sharding import epsilon
from rankfold_jax.paired_run import interpreter
from rankfold_jax.versions import thread_state

Model = TypeVar("Model")


class FlaxAdapter(ABC, Generic[Model]):
    """Methods of an adapter that need no more than a `PureModel` and the dtype of a layer."""

    image_axes = (1, 2)

    def has_examples(self, array: Any) -> bool:
        """See `rankfold.adapters.inputs.TellsExamples`."""
        return has_examples(array)

    @abstractmethod
    def read(self, model: Model, path: str) -> Op:
        """See `rankfold.adapters.base.Adapter`."""

    @abstractmethod
    def build(self, model: Model, path: str, chain: Chain) -> object:
        """See `rankfold.adapters.base.Adapter`."""

    @abstractmethod
    def chain(self, model: Model, small: Model, path: str) -> Chain:
        """See `rankfold.adapters.base.Adapter`."""

    @abstractmethod
    def _flow(self, model: Model, paths: Iterable[str]) -> PureModel:
        """The model as a pure function, with the places of these layers among its arrays."""

    @abstractmethod
    def _dtype(self, model: Model, path: str) -> Any:
        """Dtype of the layer's kernel."""

    @abstractmethod
    def _is_laid_out(self, model: Model, path: str) -> bool:
        """Whether the numbers of the layer's op are to be found among the model's arrays."""

    @abstractmethod
    def _with_values(self, model: Model, values: Sequence[Any]) -> Model:
        """A copy of the model with other arrays, in the order of those of `_flow`."""

    def _reference(
        self, model: Model, paths: Iterable[str], inputs: Inputs | None
    ) -> Reference | None:
        """Return the model to compare with; None without inputs or where layers are not known."""
        if inputs is None or not all(self._is_laid_out(model, path) for path in paths):
            return None
        return Reference(self._flow(model, paths), inputs)

    def _left(
        self,
        reference: Reference,
        model: Model,
        paths: Sequence[str],
        replaced: Callable[[Sequence[str]], Model],
    ) -> dict[str, str]:
        """Return by path why layers must be left alone: without them the model fails or differs."""

        def trial(some: Sequence[str]) -> tuple[PureModel, Mapping[str, Op]] | None:
            small = replaced(some)
            try:
                chains = {path: self.chain(model, small, path) for path in some}
            except Refused:  # a layer rule built other modules
                return None
            ops = {path: composed(self.read(model, path), chains[path]) for path in some}
            return self._flow(small, ()), ops

        return reference.left(paths, trial)

    def thread_state(self) -> Callable[[], object]:
        """Return a function that puts the state of JAX's caches back as it is now."""
        return thread_state()

    def precision(self, model: Model, path: str) -> float:
        """Return the machine epsilon of the layer's parameters."""
        return epsilon(self._dtype(model, path))

    def moments(
        self,
        model: Model,
        calibration: Calibration,
        layers: Mapping[str, Op],
        rng: np.random.Generator,
        advance: Advance,
    ) -> Mapping[str, LayerMoments]:
        """One compiled forward and backward pass per batch."""
        known = {path: op for path, op in layers.items() if self._is_laid_out(model, path)}
        return moments.moments(self._flow(model, known), calibration, known, rng, advance)

    def run_paired(
        self,
        model: Model,
        calibration: Calibration,
        layers: Mapping[str, Op],
        visit: LayerVisitor,
        *,
        sequential: bool,
        rng: np.random.Generator,
    ) -> Mapping[str, float]:
        """Layers under scan are met in their turns.

        A layer that every turn uses, or that is in another loop, is met before it, without sums
        over its inputs.
        """
        return interpreter.run_paired(
            self._flow(model, layers), calibration, layers, visit, sequential=sequential, rng=rng
        )

    def divergence(
        self, model: Model, small: Model, calibration: Calibration
    ) -> tuple[float, float]:
        """One compiled forward pass of both models per batch."""
        return losses.divergence(self._flow(model, ()), self._flow(small, ()), calibration)

    @contextmanager
    def student(self, model: Model, small: Model, held_out: Calibration) -> Iterator[Student]:
        """One compiled step for each kind of batches, by optax; nothing has to be put back."""
        flow = self._flow(small, ())
        yield FlaxStudent(self._flow(model, ()), flow, held_out, partial(self._with_values, small))

    def seconds(
        self, model: Model, path: str, chains: Sequence[Chain], extents: Sequence[Extent]
    ) -> tuple[float, ...]:
        """Compiled functions of the ops, channels last."""
        build = partial(self.build, model, path)
        dtype = self._dtype(model, path)
        return timing.seconds(self.read(model, path), chains, extents, dtype, build)

    def model_seconds(self, models: Sequence[Model], inputs: Any) -> tuple[float, ...]:
        """Whole forward passes, compiled."""
        return timing.model_seconds([self._flow(model, ()) for model in models], inputs)
