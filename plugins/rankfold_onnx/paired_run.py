"""The model and its compressed self side by side on calibration data, layer by layer.

All batches advance together: the sums of a layer are over all of them, on the inputs that the
replacements before it give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime

from rankfold.calibration.position_sample import chunks
from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Embedding, Op
from rankfold.plugins import (
    LayerVisitor,
    RegressionSums,
    RelativeDistance,
    has_regression,
    is_held_out,
)
from rankfold_onnx import patches, runtime
from rankfold_onnx.runs import BatchRun, batch_error
from rankfold_onnx.segments import Segment, Step
from rankfold_onnx.stages import Stages, X, Y
from rankfold_onnx.sums import OutputSums, add_distance, projected

Build = Callable[[str, Chain], Stages]
"""From a path and a chain to the nodes in the place of a layer; raises `Refused`."""


def run_paired(
    runs: Iterable[BatchRun],
    ops: Mapping[str, Op],
    visit: LayerVisitor,
    build: Build,
    *,
    sequential: bool,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Visit and replace layers in the order of the graph; see `rankfold.plugins.Calibrates`.

    Args:
        runs: of the model, one of each batch.
        ops: the layers to meet, by path.
        visit: gives the chain of a layer.
        build: builds it.
        sequential: whether the replacements work on what the replacements before them give.
        rng: draws the sample of positions.
    """
    paired = _PairedRun(ops, visit, build, rng, sequential=sequential)
    paired.run([_Batch(run) for run in runs])
    return {path: error.value for path, error in paired.errors.items()}


@dataclass(eq=False)
class _Batch:
    """Both runs of a batch.

    Attributes:
        batch: the batch.
        position: of the next step.
        original: what is known of the run of the model, by name.
        compressed: the same of the compressed model; None as long as it is the same.
    """

    batch: BatchRun
    position: int = 0
    original: dict[str, Any] = field(default_factory=dict)
    compressed: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.original = dict(self.batch.feeds)

    @property
    def step(self) -> Step | None:
        """The layer that is called next; None behind the last one."""
        steps = self.batch.segments.steps
        return steps[self.position] if self.position < len(steps) else None

    @property
    def number(self) -> int:
        """Number of calls that the layer that is called next has had."""
        steps = self.batch.segments.steps
        path = steps[self.position].call.path
        return sum(step.call.path == path for step in steps[: self.position])

    @contextmanager
    def named(self) -> Iterator[None]:
        """Say of what fails inside that it was this batch."""
        try:
            yield
        except runtime.FailedError as error:
            raise batch_error(self.batch.index, error) from error

    def on_both(self, segment: Segment) -> None:
        """Run nodes on what is known of both runs."""
        with self.named():
            segment.run(self.original)
            if self.compressed is not None:
                segment.run(self.compressed)

    def release(self, segment: Segment) -> None:
        """Forget what nothing reads any more."""
        segment.release(self.original)
        if self.compressed is not None:
            segment.release(self.compressed)


class _PairedRun:
    def __init__(
        self,
        ops: Mapping[str, Op],
        visit: LayerVisitor,
        build: Build,
        rng: np.random.Generator,
        *,
        sequential: bool,
    ) -> None:
        self._ops = ops
        self._order = {path: index for index, path in enumerate(ops)}
        self._visit = visit
        self._build = build
        self._rng = rng
        self._sequential = sequential
        self._total = 0
        # By path of each layer that was met; None where the layer stays as it is.
        self._sessions: dict[str, onnxruntime.InferenceSession | None] = {}
        self.errors: dict[str, RelativeDistance] = {}

    def run(self, batches: Sequence[_Batch]) -> None:
        """Run all batches to their last layer, meeting the layers on the way."""
        self._total = sum(batch.batch.examples for batch in batches)
        for batch in batches:
            self._to_next_layer(batch)
        while live := [batch for batch in batches if batch.step is not None]:
            # Only the batches at the earliest layer go on, so that all that call it wait there when
            # it is met. Batches on other branches pass it by.
            keys = [self._key(batch) for batch in live]
            group = [b for b, key in zip(live, keys, strict=True) if key == min(keys)]
            for batch in group:
                step = batch.step
                assert step is not None
                with batch.named():
                    step.layer.run(batch.original)
            assert group[0].step is not None
            path = group[0].step.call.path
            if path not in self._sessions:
                self._meet(path, group)
            for batch in group:
                with batch.named():
                    self._give(path, batch)
                batch.position += 1
                self._to_next_layer(batch)

    def _key(self, batch: _Batch) -> tuple[int, int]:
        assert batch.step is not None
        return self._order[batch.step.call.path], batch.number

    def _to_next_layer(self, batch: _Batch) -> None:
        step = batch.step
        if step is not None:
            batch.on_both(step.before)
            batch.release(step.before)

    def _meet(self, path: str, group: Sequence[_Batch]) -> None:
        fit, held_out = self._sums(path, group)
        chain = self._visit(path, fit, held_out)
        self._sessions[path] = None
        if chain[0] is self._ops[path]:  # the layer stays as it is
            self.errors[path] = RelativeDistance()
            return
        try:
            self._sessions[path] = runtime.session(self._build(path, chain).as_model())
        except (Refused, runtime.NotRunError):
            return
        self.errors[path] = RelativeDistance()

    def _give(self, path: str, batch: _Batch) -> None:
        """Let a layer give its output in both runs."""
        step, running = batch.step, self._sessions[path]
        assert step is not None
        call = step.call
        y = batch.original[call.y]
        if running is None:
            if batch.compressed is not None:
                step.layer.run(batch.compressed)
                self._note(path, y, batch.compressed[call.y])
            elif path in self.errors:
                self._note(path, y, y)
        else:
            before = batch.original if batch.compressed is None else batch.compressed
            (other,) = runtime.run(running, [Y], {X: before[call.x]})
            self._note(path, y, other)
            if self._sequential:
                # Until here both runs were the same.
                batch.compressed = {**before, call.y: other}
        batch.release(step.layer)

    def _note(self, path: str, y: Array, other: Array) -> None:
        if path in self.errors:
            add_distance(self.errors[path], y, other)

    def _sums(
        self, path: str, group: Sequence[_Batch]
    ) -> tuple[RegressionSums | None, RegressionSums | None]:
        op = self._ops[path]
        # Sums of inputs and outputs serve a regression on full rows; tables and the forms that keep
        # less have none.
        if isinstance(op, Embedding):
            return None, None
        basis = self._visit.basis(path)
        if not has_regression(op, basis):
            return None, None
        fit, held_out = OutputSums(held_out=False), OutputSums(held_out=True)
        for batch in group:
            assert batch.step is not None
            call = batch.step.call
            y = batch.original[call.y]
            x = (batch.compressed or batch.original)[call.x]
            if not x.size:
                continue
            drawn = patches.sample(op, x.shape, self._total, self._rng, basis)
            taken = patches.Inputs(op, x, drawn)
            for chunk in chunks(op, drawn):
                # The input of the compressed run against the output of the original one: the
                # replacement is fitted to undo errors of the layers before it as well.
                rows = projected(taken.take(chunk), basis)
                targets = patches.outputs(op, y, drawn, chunk)
                # A model may fold time or windows into the batch axis: then several images belong
                # to one example, and are held out or kept together.
                image = drawn.of(chunk)[0]
                number = batch.batch.first + image * batch.batch.examples // drawn.images
                out = np.asarray(is_held_out(number, self._total))
                fit.add(rows[~out], targets[~out])
                held_out.add(rows[out], targets[out])
        sums = fit.regression_sums()
        return (None, None) if sums is None else (sums, held_out.regression_sums())
