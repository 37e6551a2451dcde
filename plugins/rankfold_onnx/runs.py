"""Batches of calibration data on a model, each on the branches that it takes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rankfold.calibration.losses import failure
from rankfold.errors import RankfoldError
from rankfold.plugins import Calibration, examples
from rankfold_onnx import runtime
from rankfold_onnx.flat_graph import flattened
from rankfold_onnx.graph import Graphs
from rankfold_onnx.layers import Layer
from rankfold_onnx.segments import Segments


@dataclass(frozen=True, eq=False)
class BatchRun:
    """One batch and the graph that it runs through.

    Attributes:
        index: of the batch.
        first: number of its first example.
        examples: how many it has.
        feeds: by name of the graph's inputs.
        segments: of the graph.
    """

    index: int
    first: int
    examples: int
    feeds: Mapping[str, Any]
    segments: Segments


def batch_runs(
    graphs: Graphs,
    layers: Mapping[str, Layer],
    calibration: Calibration,
    paths: Collection[str],
) -> Iterator[BatchRun]:
    """Yield the batches; those that take the same branches share their segments.

    Args:
        graphs: of the model.
        layers: of the model.
        calibration: the batches.
        paths: of the layers at which runs stop.

    Raises:
        RankfoldError: a batch does not fit the model.
    """
    known: dict[tuple[str, ...], Segments] = {}
    first = 0
    for index, inputs in enumerate(calibration.inputs):
        try:
            feeds = runtime.feeds_of(graphs.model, inputs)
            flat = flattened(graphs, layers, feeds)
        except RankfoldError as error:
            raise batch_error(index, error) from error
        if flat.taken not in known:
            known[flat.taken] = Segments.of(flat, paths)
        count = examples(inputs)
        yield BatchRun(index, first, count, feeds, known[flat.taken])
        first += count


def batch_error(index: int, error: RankfoldError) -> RankfoldError:
    """Return the error for a batch that does not fit the model, or on which it fails."""
    if isinstance(error, runtime.FailedError):
        return failure(index, error.__cause__ or error)
    return RankfoldError(f"calibration: batch {index}: {error}")
