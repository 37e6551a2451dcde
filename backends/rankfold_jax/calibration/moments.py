"""One pass over calibration data that gathers the moments of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankfold.calibration.accumulators import (
    gradient_not_finite,
    input_moment,
    input_not_finite,
    moment_not_finite,
)
from rankfold.calibration.array_store import ArrayStore, StoredSum
from rankfold.calibration.batches import Calibration
from rankfold.calibration.losses import draws, failure
from rankfold.calibration.moments import LayerMoments, StoredMoments, input_form
from rankfold.calibration.patch_sketch import matrix_for
from rankfold.errors import RankfoldError
from rankfold.faults import let_through
from rankfold.linalg import Array
from rankfold.ops import Op
from rankfold.progress import Advance
from rankfold_jax.calibration.moment_interpreter import Gatherer, Sums, empty_moment_tap
from rankfold_jax.functional import losses
from rankfold_jax.functional.inputs import Inputs
from rankfold_jax.functional.pure_function import PureModel, TracedModel
from rankfold_jax.layouts.sharding import away

_COUNTS = frozenset({"rows", "positions", "bad"})
"""What the sums over a batch have besides those that moments are made of."""


def moments(
    flow: PureModel,
    calibration: Calibration,
    layers: Mapping[str, Op],
    rng: np.random.Generator,
    advance: Advance,
) -> Mapping[str, LayerMoments]:
    """Return the moments of the layers that run; see `rankfold.adapters.base.Calibrates`.

    Args:
        flow: the model, with where each of the layers lies.
        calibration: batches and loss.
        layers: the layers.
        rng: draws labels, noise and positions.
        advance: called before each batch.

    Raises:
        RankfoldError: the model fails on a batch, its loss cannot be differentiated, or something
            is not finite.
    """
    programs = flow.programs(calibration.inputs)
    total = sum(program.inputs.examples for program, _ in programs)
    passes: list[_Pass] = []
    # All draws come from one key by the index of the batch: they do not depend on what is compiled.
    key = jax.random.key(int(rng.integers(2**31)))
    store = ArrayStore()
    totals = {path: _Totals(op, store) for path, op in layers.items()}
    matrices = {
        path: jnp.asarray(matrix_for(op))
        for path, op in layers.items()
        if input_form(op) == "separable"
    }
    for index, (program, arrays) in enumerate(programs):
        advance(f"batch {index}")
        # The whole batch, labels included, as a loss function gets it.
        batch = Inputs((calibration.batches[index],))
        compiled = next((p for p in passes if p.serves(program, batch)), None)
        if compiled is None:
            compiled = _Pass(flow, program, batch, calibration, layers, total, index)
            passes.append(compiled)
        sums, taps = compiled(arrays, batch, matrices, jax.random.fold_in(key, index), index)
        _check(sums, taps, compiled.order)
        # A gradient of zero everywhere, for a loss of the user's: nothing of the outputs reached
        # it.
        users = compiled.order and not isinstance(calibration.loss, str)
        if users and not any(bool(jnp.any(gradients != 0)) for gradients in taps.values()):
            raise RankfoldError(
                f"loss {calibration.loss_name!r}: it does not depend on the outputs in a way that "
                "can be differentiated; use jax.numpy and no stop_gradient or argmax"
            )
        for path in compiled.order:
            # Taken out: the arrays of each layer are freed as soon as they are added.
            totals[path].add(sums.pop(path), taps.pop(path))
    count = draws(calibration, total)
    run = [path for path in layers if not totals[path].empty]
    for path in run:
        totals[path].finish()
    return StoredMoments({path: partial(totals[path].moments, total, count) for path in run})


class _Totals:
    """Sums of one layer over the batches."""

    def __init__(self, op: Op, store: ArrayStore) -> None:
        self._op = op
        self._store = store
        self._sums: dict[str, _Sum] = {}
        self._grads = _Sum(store)
        self._rows: Array | None = None
        self._positions: Array | None = None
        self._has_gradient = False

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return not self._sums

    def add(self, terms: Mapping[str, jax.Array], gradients: jax.Array) -> None:
        """Add the sums over a batch, of the inputs and of the gradients."""
        # Sums of one batch are float32 on the device; sums over batches are float64.
        for name in (name for name in terms if name not in _COUNTS):
            if name not in self._sums:
                self._sums[name] = _Sum(self._store)
            self._sums[name].add(terms[name])
        self._grads.add(gradients)
        self._has_gradient |= bool(jnp.any(gradients != 0))
        rows, positions = (np.asarray(terms[n]).astype(np.float64) for n in ("rows", "positions"))
        self._rows = rows if self._rows is None else self._rows + rows
        self._positions = positions if self._positions is None else self._positions + positions

    def finish(self) -> None:
        """Make of the sums what is read from now on."""
        assert self._rows is not None
        # Per group: layers of a stack may be called unequally often, and some not at all.
        rows = np.maximum(self._rows, 1.0)
        self._means = {name: partial(total.over, rows) for name, total in self._sums.items()}
        self._inputs = input_moment(self._op, lambda name: self._means[name](), self._store)

    def moments(self, examples: int, draws: int) -> LayerMoments:
        """Return the moments, over all calls."""
        assert self._positions is not None
        positions = np.maximum(self._positions, 1.0)
        return LayerMoments(
            self._inputs(),
            self._means["mean"](),
            self._grads.over(positions * draws) if self._has_gradient else None,
            samples=examples,
            positions_per_example=float(self._positions.mean()) / examples,
        )


class _Sum:
    """Sum of arrays of one shape, in a store or on the device where decompositions compute."""

    def __init__(self, store: ArrayStore) -> None:
        self._sum = StoredSum(store)
        self._staying: jax.Array | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return self._staying is None and self._sum.empty

    def add(self, term: jax.Array) -> None:
        """Add an array."""
        if not away(term):
            self._sum.add(np.asarray(term), np.float64)
            return
        term = term.astype(jnp.float64)
        self._staying = term if self._staying is None else self._staying + term

    def over(self, count: Array) -> Array:
        """Return the sum over a number for each group."""
        if self._staying is None:
            return self._sum.over(count.reshape(-1, *(1,) * (self._sum.ndim - 1)))
        mean: Any = self._staying / count.reshape(-1, *(1,) * (self._staying.ndim - 1))
        return mean  # type: ignore[no-any-return]  # an array of JAX stands for one of NumPy


@dataclass(eq=False)
class _Pass:
    """Forward and backward pass for batches of one kind, compiled.

    Attributes:
        flow: the model.
        program: for inputs of the kind.
        batch: one of them, whole.
        calibration: batches and loss.
        layers: the layers.
        examples: in all batches.
        index: of the first batch of the kind.
        order: the layers that run, in the order of their first calls.
    """

    flow: PureModel
    program: TracedModel
    batch: Inputs
    calibration: Calibration
    layers: Mapping[str, Op]
    examples: int
    index: int
    order: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._draws = draws(self.calibration, self.examples)
        self._compiled = jax.jit(self._gathered)

    def serves(self, program: TracedModel, batch: Inputs) -> bool:
        """True if this is the pass for such a batch."""
        return program is self.program and batch.signature == self.batch.signature

    def __call__(
        self,
        arrays: Sequence[Any],
        batch: Inputs,
        matrices: Mapping[str, jax.Array],
        key: jax.Array,
        index: int,
    ) -> tuple[Sums, dict[str, jax.Array]]:
        """Return the sums of the layers over a batch, and those of their gradients.

        Args:
            arrays: of the batch, as the program takes them.
            batch: whole.
            matrices: test matrices of the layers with wide patches, by path.
            key: draws.
            index: of the batch.
        """
        try:
            sums: tuple[Sums, dict[str, jax.Array]] = self._compiled(
                self.flow.values, list(arrays), batch.arrays, dict(matrices), key
            )
            jax.block_until_ready(sums)  # type: ignore[no-untyped-call]  # JAX leaves it untyped
        except RankfoldError:
            raise
        except Exception as error:  # whatever the model raises on these inputs
            let_through(error)
            # JAX has no class of its own for this error.
            if "Reverse-mode differentiation" in str(error):
                raise RankfoldError(
                    "calibration: the model has a while loop (lax.while_loop, or lax.fori_loop "
                    "with bounds that are not known), through which no gradient goes back; write "
                    "it as lax.scan or with a fixed number of turns, or compress without "
                    "calibration="
                ) from error
            raise failure(index, error, batch.arguments) from error
        return sums

    def _gathered(self, values: Any, arrays: Any, batch: Any, matrices: Any, key: jax.Array) -> Any:
        # Which positions are sampled does not depend on how often labels are drawn.
        positions, labels = jax.random.split(key)
        closed = self.program.closed

        def forward(taps: Mapping[str, jax.Array]) -> tuple[list[Any], Sums]:
            gatherer = Gatherer(
                self.flow.parameters, self.layers, self.examples, positions, taps, matrices
            )
            outputs, sums = gatherer.run(closed, [*values, *arrays])
            # Set while this is traced: the order of the layers is static.
            self.order = list(gatherer.order)
            return outputs, sums

        # The gradients of these zeros are the moments: each layer's output passes through a tap
        # whose backward pass adds up the second moment of what comes through. So the sums over all
        # calls are made by the backward pass itself, and no gradient is kept.
        zeros = {path: empty_moment_tap(op) for path, op in self.layers.items()}
        outputs, back, sums = jax.vjp(forward, zeros, has_aux=True)

        def once(key: jax.Array) -> Any:
            # Outputs of integers have no gradient, which `allow_int` lets pass.
            gradient = jax.grad(lambda values: self._loss(values, batch, key), allow_int=True)
            return back(gradient(outputs))[0]

        if self._draws == 1:
            return sums, once(labels)

        def again(total: Any, key: jax.Array) -> Any:
            return jax.tree.map(jnp.add, total, once(key)), None

        # One forward pass for all draws; a scan, so that the backward pass is compiled once.
        return sums, jax.lax.scan(again, zeros, jax.random.split(labels, self._draws))[0]

    def _loss(self, outputs: list[Any], batch: Any, key: jax.Array) -> jax.Array:
        whole = self.program.rebuilt(outputs)
        count = self.program.inputs.examples
        if isinstance(self.calibration.loss, str):
            return losses.drawn(self.calibration.loss, whole, count, key)
        # The user's loss gets the batch as it came, with traced arrays in place.
        ((traced,), _) = self.batch.whole(batch)
        return losses.loss_of(self.calibration, self.index, whole, traced) * count


def _check(sums: Sums, taps: Mapping[str, jax.Array], order: Sequence[str]) -> None:
    for path in order:
        # In the order of calls: the first layer with a bad input is nearest to the cause.
        if float(sums[path]["bad"]):
            raise input_not_finite(path)
        if not all(map(_finite, sums[path].values())):
            raise moment_not_finite(path, "inputs", "the data")
    # From the loss backwards: the first layer whose gradients are not finite is nearest to the
    # cause.
    for path in reversed(order):
        if not _finite(taps[path]):
            raise gradient_not_finite(path)


def _finite(x: jax.Array) -> bool:
    return bool(jnp.isfinite(x).all())
