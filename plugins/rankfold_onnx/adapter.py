"""`OnnxAdapter`, through which the core reads, runs and changes ONNX models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from onnx import ModelProto

from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Extent, Op
from rankfold.plugins import Calibration, LayerMoments, LayerVisitor, Trace
from rankfold.progress import Advance
from rankfold_onnx import (
    expansion,
    losses,
    moments,
    paired_run,
    stages,
    state_io,
    surgery,
    timing,
    tracing,
)
from rankfold_onnx.flat_graph import flattened
from rankfold_onnx.graph import Graphs
from rankfold_onnx.layers import Layer, layers_of
from rankfold_onnx.output_layers import output_layers
from rankfold_onnx.runs import batch_runs
from rankfold_onnx.stages import Stages


class _Known:
    """A model with its graphs and layers; hashable by identity, which a message of onnx is not."""

    def __init__(self, model: ModelProto) -> None:
        self.graphs: Graphs
        self.layers: dict[str, Layer]
        self.graphs, self.layers = layers_of(model)


class OnnxAdapter:
    """Reads, builds and replaces layers of an `onnx.ModelProto`.

    An instance serves one call of plan, apply, compress or load, during which the model is
    unchanged until it is replaced. Paths are the names of nodes, or of what they give where they
    have no name of their own.
    """

    def __init__(self) -> None:
        # By identity: the graph is walked once a model, not once a layer. The model is kept, so
        # that no other one gets its id.
        self._known: dict[int, tuple[ModelProto, _Known]] = {}

    def _of(self, model: ModelProto) -> _Known:
        kept = self._known.get(id(model))
        if kept is None or kept[0] is not model:
            kept = self._known[id(model)] = (model, _Known(model))
        return kept[1]

    def layers(self, model: ModelProto) -> Mapping[str, str]:
        """Return the types of nodes with weights by path, in the order of the graph."""
        return {path: layer.kind for path, layer in self._of(model).layers.items()}

    def size(self, model: ModelProto) -> int:
        """Return how many floating-point numbers the tensors of the model hold."""
        return state_io.size(self._of(model).graphs)

    def aliases(self, model: ModelProto, path: str) -> tuple[str, ...]:
        """Return the paths of the further nodes of a layer."""
        return tuple(call.path for call in self._of(model).layers[path].calls[1:])

    def read(self, model: ModelProto, path: str) -> Op:
        """Return the layer at a path as an op."""
        layer = self._of(model).layers[path]
        if layer.refusal:
            raise Refused(layer.refusal)
        return layer.op

    def trace(self, model: ModelProto, inputs: Any) -> Trace:
        """Run the model once; where onnxruntime cannot, infer its shapes."""
        known = self._of(model)
        return tracing.trace(known.graphs, known.layers, inputs)

    def named_outputs(self, model: ModelProto) -> Iterable[str]:
        """Return the layers that the outputs of the graph come from, on any of its branches."""
        known = self._of(model)
        flat = partial(flattened, known.graphs, known.layers, None)
        return output_layers(flat(condition=True)) | output_layers(flat(condition=False))

    def build(self, model: ModelProto, path: str, chain: Chain) -> Stages:
        """Return nodes for a chain, of the types that the layer is of."""
        return stages.staged(model, self._of(model).layers[path], chain)

    def refilled(self, model: ModelProto, path: str, op: Op) -> Stages:
        """Return the nodes of the layer with the values of an op."""
        return stages.staged(model, self._of(model).layers[path], (op,))

    def moments(
        self,
        model: ModelProto,
        calibration: Calibration,
        layers: Mapping[str, Op],
        rng: np.random.Generator,
        advance: Advance,
    ) -> Mapping[str, LayerMoments]:
        """Gather moments of inputs in one pass, and what errors of each layer are worth."""
        known = self._of(model)
        return moments.moments(known.graphs, known.layers, calibration, layers, rng, advance)

    def run_paired(
        self,
        model: ModelProto,
        calibration: Calibration,
        layers: Mapping[str, Op],
        visit: LayerVisitor,
        *,
        sequential: bool,
        rng: np.random.Generator,
    ) -> Mapping[str, float]:
        """Run the model and its compressed self side by side, from layer to layer."""
        known = self._of(model)
        return paired_run.run_paired(
            batch_runs(known.graphs, known.layers, calibration, layers),
            layers,
            visit,
            lambda path, chain: self.build(model, path, chain),
            sequential=sequential,
            rng=rng,
        )

    def divergence(
        self, model: ModelProto, small: ModelProto, calibration: Calibration
    ) -> tuple[float, float]:
        """Return the mean losses of both models, by one pass of each per batch."""
        return losses.divergence(model, small, calibration)

    def seconds(
        self, model: ModelProto, path: str, chains: Sequence[Chain], extents: Sequence[Extent]
    ) -> tuple[float, ...]:
        """Return median seconds of a layer and of chains, alone in a session of onnxruntime."""
        layer = self._of(model).layers[path]
        forms = [(layer.op,), *chains]
        built = [timing.built(partial(self.build, model, path, chain)) for chain in forms]
        return timing.seconds(built, layer.op, layer.dtype, extents)

    def model_seconds(self, models: Sequence[ModelProto], inputs: Any) -> tuple[float, ...]:
        """Return median seconds of one pass of each model."""
        return timing.model_seconds(models, inputs)

    def run(self, module: Stages, x: Array) -> Array:
        """Return the output of nodes, in float64."""
        return stages.run(module, x)

    def precision(self, model: ModelProto, path: str) -> float:
        """Return the machine epsilon of the weight's dtype."""
        return float(ml_dtypes.finfo(self._of(model).layers[path].dtype).eps)  # type: ignore[no-untyped-call]  # it has no types

    def replace(
        self, model: ModelProto, modules: Mapping[str, Stages], *, inplace: bool
    ) -> ModelProto:
        """Put nodes and tensors in the place of those of layers."""
        if inplace:
            self._known.pop(id(model), None)
        return surgery.replaced(model, modules, inplace=inplace)

    def expanded(self, model: ModelProto, small: ModelProto, paths: Sequence[str]) -> ModelProto:
        """Return the original with the numbers of its compressed form."""
        return expansion.expanded(model, small, paths)

    def save_weights(self, model: ModelProto, file: Path) -> None:
        """Write every tensor of the graph under its name."""
        state_io.save(self._of(model).graphs, file)

    def load_weights(self, model: ModelProto, file: Path, *more: Path) -> ModelProto:
        """Fill the tensors of the model, after a check of all names, types and shapes."""
        state_io.load(self._of(model).graphs, (file, *more))
        self._known.pop(id(model), None)
        return model
