"""Loss that an error of a layer's output makes: noise is tried in place of gradients.

With noise δ of variance σ² on every number of a layer's output the loss of the outputs changes by
E‖Jδ‖² = σ² tr JᵀJ to first order, J being the Jacobian of what the loss is of. The change over σ²
and the count of numbers is the mean square of the gradient at one of them: all that can be had of
the gradients' second moment without gradients, and what makes errors of different layers compare
(Hutchinson's estimate of a trace, Commun. Stat. Simul. Comput. 18, 1989).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from onnx import NodeProto, helper

from rankfold.linalg import Array
from rankfold.plugins import Calibration, examples
from rankfold_onnx import losses, runtime
from rankfold_onnx.flat_graph import FlatCall, FlatGraph, flattened
from rankfold_onnx.graph import Graphs
from rankfold_onnx.layers import Layer
from rankfold_onnx.runs import batch_error

_NOISE = 0.1
"""Standard deviation of the noise over the root mean square of the output: of the size of the
errors that a compression makes, and far above the rounding of float32. On a classifier with
saturated outputs (`tests.benchmarks.onnx`, "direction"), 0.03, 0.1, 0.3 and 1 left 98, 96, 94 and
94 % of its answers at 90 % of the multiply-accumulates, and 72, 94, 91 and 77 % at 80 %."""
_EXAMPLES = 8
"""Examples to try the noise on, if batches can be cut: one pass for each layer. Every example has
thousands of numbers with noise of their own, so that few give a steady mean."""
_DRAWS_OF_SCALAR = 8
"""Draws for a loss of the user's: its change is one number for a batch, and not one for each
output."""


def sensitivities(
    graphs: Graphs,
    layers: Mapping[str, Layer],
    calibration: Calibration,
    scales: Mapping[str, float],
    rng: np.random.Generator,
) -> dict[str, float]:
    """Return by path the mean square of the gradient at a number of a layer's output.

    Args:
        graphs: of the model.
        layers: of the model.
        calibration: batches and loss.
        scales: by path, the root mean square of the output.
        rng: draws the noise.

    Raises:
        RankfoldError: the model or the loss fails.
    """
    changes, sizes = dict.fromkeys(scales, 0.0), dict.fromkeys(scales, 0.0)
    draws = 1 if isinstance(calibration.loss, str) else _DRAWS_OF_SCALAR
    squash = losses.squash_of(graphs.model)
    sessions: dict[tuple[str, ...], _Noisy] = {}
    seen = 0
    for index, inputs in enumerate(calibration.inputs):
        # Data that leads to other branches may come late: layers that were not met are looked for
        # in all batches, and only in these.
        wanted = [path for path in scales if seen < _EXAMPLES or not sizes[path]]
        if not wanted:
            break
        try:
            feeds = runtime.feeds_of(graphs.model, inputs)
            flat = flattened(graphs, layers, feeds)
            if flat.taken not in sessions:
                sessions[flat.taken] = _Noisy.of(flat, layers, scales)
            noisy = sessions[flat.taken]
            few = max(1, _EXAMPLES - seen) if isinstance(calibration.loss, str) else None
            silent = noisy.silent(feeds, examples(inputs), few)
            for path in wanted:
                for _ in range(draws if path in silent.shapes else 0):
                    deviation = scales[path] * _NOISE
                    second = noisy.with_noise(silent, path, deviation, rng)
                    changes[path] += losses.change(
                        calibration, index, silent.count, silent.outputs, second, squash
                    )
                    sizes[path] += deviation**2 * sum(map(math.prod, silent.shapes[path]))
        except runtime.FailedError as error:
            raise batch_error(index, error) from error
        seen += examples(inputs)
    return {path: changes[path] / sizes[path] if sizes[path] else 0.0 for path in scales}


@dataclass(frozen=True, eq=False)
class _Silent:
    """A run without noise.

    Attributes:
        feeds: of the run.
        count: of its examples.
        outputs: of the model.
        shapes: by path, of the outputs of all calls of a layer.
    """

    feeds: Mapping[str, Any]
    count: int
    outputs: list[Any]
    shapes: Mapping[str, list[tuple[int, ...]]]


@dataclass(frozen=True, eq=False)
class _Noisy:
    """A model with a noise added to the output of each layer.

    Attributes:
        flat: the graph.
        calls: of the layers, by path.
        names: of the noise of each call, by the name of its output.
        kinds: dtypes of these.
        running: gives the outputs of the model and the shapes of the layers' outputs.
    """

    flat: FlatGraph
    calls: Mapping[str, Sequence[FlatCall]]
    names: Mapping[str, str]
    kinds: Mapping[str, np.dtype[np.generic]]
    running: onnxruntime.InferenceSession

    @classmethod
    def of(
        cls, flat: FlatGraph, layers: Mapping[str, Layer], scales: Mapping[str, float]
    ) -> _Noisy:
        """Build the model and its session."""
        calls: dict[str, list[FlatCall]] = {}
        names: dict[str, str] = {}
        kinds: dict[str, np.dtype[np.generic]] = {}
        extra: dict[int, list[NodeProto]] = {}
        nodes = list(flat.nodes)
        for call in flat.calls:
            # A layer whose output is zero everywhere has no scale to measure by.
            if not scales.get(call.path):
                continue
            calls.setdefault(call.path, []).append(call)
            names[call.y] = f"rankfold.noise.{call.y}"
            kinds[call.y] = layers[call.path].dtype
            last, clean = call.nodes[-1], f"rankfold.clean.{call.y}"
            node = NodeProto()
            node.CopyFrom(nodes[last])
            node.output[0] = clean
            nodes[last] = node
            extra[last] = [
                helper.make_node("Add", [clean, names[call.y]], [call.y]),
                helper.make_node("Shape", [clean], [f"rankfold.shape.{call.y}"]),
            ]
        spliced = [n for i, node in enumerate(nodes) for n in (node, *extra.get(i, ()))]
        noises = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kinds[y]), None)
            for y, name in names.items()
        ]
        inputs = [i for i in flat.model.graph.input if i.name not in flat.constants]
        outputs = [*flat.outputs, *(f"rankfold.shape.{y}" for y in names)]
        running = runtime.session(flat.part(spliced, [*inputs, *noises], outputs))
        return cls(flat, calls, names, kinds, running)

    def silent(self, feeds: Mapping[str, Any], count: int, few: int | None) -> _Silent:
        """Run without noise.

        Args:
            feeds: of a batch.
            count: of its examples.
            few: of how many of them, if the model takes a batch of that size; None for all.
        """
        if few is not None and few < count:
            try:
                return self.silent(_first(feeds, count, few), few, None)
            except runtime.FailedError:
                pass  # a model for batches of one size: all of it, then
        results = runtime.run(self.running, None, {**feeds, **self._silence()})
        number = len(self.flat.outputs)
        sizes = dict(zip(self.names, results[number:], strict=True))
        shapes = {
            path: [tuple(int(n) for n in sizes[call.y]) for call in calls]
            for path, calls in self.calls.items()
        }
        return _Silent(feeds, count, results[:number], shapes)

    def with_noise(
        self,
        silent: _Silent,
        path: str,
        deviation: float,
        rng: np.random.Generator,
    ) -> list[Any]:
        """Return the outputs with noise on all outputs of one layer."""
        noise = self._silence()
        for call, shape in zip(self.calls[path], silent.shapes[path], strict=True):
            drawn = deviation * rng.standard_normal(shape, dtype=np.float32)
            noise[self.names[call.y]] = drawn.astype(self.kinds[call.y])
        return runtime.run(self.running, self.flat.outputs, {**silent.feeds, **noise})

    def _silence(self) -> dict[str, Array]:
        return {name: np.zeros((), self.kinds[y]) for y, name in self.names.items()}


def _first(feeds: Mapping[str, Any], count: int, few: int) -> dict[str, Any]:
    """Return the first examples of a batch."""
    return {
        name: value[:few] if np.ndim(value) and len(value) == count else value
        for name, value in feeds.items()
    }
