"""One pass over calibration data that gathers the moments of layers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from rankfold.calibration.accumulators import input_moment
from rankfold.calibration.array_store import ArrayStore
from rankfold.calibration.patch_sketch import matrix_for
from rankfold.calibration.position_sample import chunks
from rankfold.linalg import Array
from rankfold.ops import Embedding, Op
from rankfold.plugins import (
    Calibration,
    LayerMoments,
    examples,
    input_form,
    input_not_finite,
    moment_not_finite,
)
from rankfold.progress import Advance
from rankfold_onnx import patches, runtime
from rankfold_onnx.graph import Graphs
from rankfold_onnx.layers import Layer
from rankfold_onnx.runs import BatchRun, batch_error, batch_runs
from rankfold_onnx.sensitivity import sensitivities
from rankfold_onnx.sums import Sum, product, squares


def moments(
    graphs: Graphs,
    layers: Mapping[str, Layer],
    calibration: Calibration,
    ops: Mapping[str, Op],
    rng: np.random.Generator,
    advance: Advance,
) -> dict[str, LayerMoments]:
    """Return the moments of the layers that run; see `rankfold.plugins.Calibrates`.

    onnxruntime has no gradients. Their moment is a multiple of the identity, whose factor is what
    noise at the output of the layer does to the outputs of the model (`sensitivity`).
    """
    total = sum(map(examples, calibration.inputs))
    sums = {path: _LayerSums(path, op, total, rng) for path, op in ops.items()}
    for run in batch_runs(graphs, layers, calibration, ops):
        advance(f"batch {run.index}")
        try:
            _add_batch(run, sums)
        except runtime.FailedError as error:
            raise batch_error(run.index, error) from error
    ran = {path: layer for path, layer in sums.items() if layer.rows}
    for layer in ran.values():
        layer.check()
    scales = {path: layer.output_scale for path, layer in ran.items()}
    worth = sensitivities(graphs, layers, calibration, scales, rng)
    return {path: layer.moments(total, worth[path]) for path, layer in ran.items()}


def _add_batch(run: BatchRun, sums: Mapping[str, _LayerSums]) -> None:
    values = dict(run.feeds)
    for step in run.segments.steps:
        step.before.run(values)
        step.before.release(values)
        x = values[step.call.x]
        step.layer.run(values)
        # A call without positions adds nothing, and a count of zero would be divided by.
        if x.size:
            sums[step.call.path].add(x, values[step.call.y])
        step.layer.release(values)


class _LayerSums:
    """Sums of one layer over all its calls.

    Attributes:
        rows: how many rows of the input are in the sums.
    """

    def __init__(self, path: str, op: Op, examples: int, rng: np.random.Generator) -> None:
        self._path = path
        self._op = op
        self._examples = examples
        self._rng = rng
        self._form = input_form(op)
        self._sums: dict[str, Sum] = {}
        self._matrix: Array | None = None
        self._positions = 0
        self._output_energy, self._output_size = 0.0, 0
        self.rows = 0

    def add(self, x: Array, y: Array) -> None:
        """Add the input and the output of one call."""
        op = self._op
        flat = patches.working(y).reshape(-1)
        self._output_energy += float(np.dot(flat, flat))
        self._output_size += flat.size
        if isinstance(op, Embedding):
            # The second moment of one-hot rows is diagonal: how often each row of the table is
            # looked up. The mean is the same. Negative indices count from the end.
            looked_up = x.reshape(-1) % len(op.weight)
            counts = np.bincount(looked_up, minlength=len(op.weight))[None].astype(np.float64)
            self._add(x.size, {"inputs": counts, "mean": counts})
            self._positions += x.size
            return
        if not np.isfinite(x).all():
            raise input_not_finite(self._path)
        drawn = patches.sample(op, x.shape, self._examples, self._rng)
        taken = patches.Inputs(op, x, drawn)
        for chunk in chunks(op, drawn):
            rows = taken.take(chunk)
            self._add(len(rows), self._terms(rows))
        self._positions += drawn.images * drawn.positions

    def _terms(self, rows: Array) -> dict[str, Array]:
        """Return the sums over rows (rows, groups, d) that the layer's form asks for."""
        mean = rows.sum(0, dtype=np.float64)
        if self._form == "patches":
            return {"inputs": product(rows, rows), "mean": mean}
        if self._form == "diagonal":
            return {"inputs": squares(rows), "mean": mean}
        if self._matrix is None:
            self._matrix = matrix_for(self._op).astype(rows.dtype)
        # One row for each channel of a patch, over the positions of the kernel.
        channels = self._op.weight.shape[1]
        split = rows.transpose(0, 2, 1).reshape(len(rows) * channels, -1, rows.shape[1])
        beside = np.ascontiguousarray(split.transpose(0, 2, 1))
        mixtures = (rows.transpose(1, 0, 2) @ self._matrix).transpose(1, 0, 2)
        return {
            "inputs": product(rows, mixtures),
            "mean": mean,
            "squares": squares(rows),
            "taps": product(beside, beside) / channels,
        }

    def _add(self, rows: int, terms: Mapping[str, Array]) -> None:
        self.rows += rows
        for name, term in terms.items():
            self._sums.setdefault(name, Sum()).add(term)

    def _mean(self, name: str) -> Array:
        return self._sums[name].over(self.rows)

    def check(self) -> None:
        """Check that the sums are finite.

        Raises:
            RankfoldError: they are not.
        """
        finite = all(total.is_finite for total in self._sums.values())
        if not (finite and math.isfinite(self._output_energy)):
            raise moment_not_finite(self._path, "inputs", "the data")

    @property
    def output_scale(self) -> float:
        """Root of the mean square of the output."""
        return math.sqrt(self._output_energy / max(1, self._output_size))

    def moments(self, examples: int, worth: float) -> LayerMoments:
        """Return the moments.

        Args:
            examples: seen in all.
            worth: mean square of the gradient at a number of the output.
        """
        op = self._op
        out = op.weight.shape[1] if isinstance(op, Embedding) else len(op.weight) // op.groups
        return LayerMoments(
            input_moment(op, self._mean, ArrayStore())(),
            self._mean("mean"),
            np.full((op.groups, out), worth),
            samples=examples,
            positions_per_example=self._positions / examples,
        )
