"""Checks of an adapter that implements `BuildsInterpolations`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rankfold.adapters.capabilities import capabilities
from rankfold.ops import Op, with_weight
from rankfold.ops.reference import forward, reconstruct
from rankfold.pipeline.result import Compressed
from rankfold.plugins.registry import registry
from rankfold.storage.folder import load, save
from rankfold.testing.assertions import fresh_adapter, halved, only_path, same
from rankfold.testing.cases import BRIEF, decomposed, probe, supported
from rankfold.testing.check import check
from rankfold.testing.harness import Harness, Unsupported

METHODS = ("svd_id", "tucker2_id", "channel_svd_id")


@check("reduced_rank", "parameters", "save_and_load")
def check_interpolated(harness: Harness) -> None:
    """Interpolative stages compute what they stand for, and store no identity."""
    for name, method, op, small in _compressed(harness):
        what, x = f"{name}, {method}", probe(op)
        chain = decomposed(op, method, full=False).chain
        expected = forward(with_weight(op, reconstruct(op, chain)), x)
        actual = harness.call(small.model, x)
        same(what, actual, expected, "the model computes")
        # What a stage passes on is no parameter of it.
        size = sum(array.size for array in harness.state(small.model).values())
        predicted = small.plan.model_params[1]
        assert size == predicted, f"{what}: {size} parameters, planned {predicted}"
        if name in BRIEF:  # files are alike for layers of one kind
            loaded = _saved_and_loaded(harness, op, small)
            same(what, harness.call(loaded, x), actual, "the loaded model computes", exact=True)


def _compressed(harness: Harness) -> Iterator[tuple[str, str, Op, Compressed]]:
    """Yield the cases that take interpolative stages, compressed by each method for them.

    Raises:
        Unsupported: the adapter builds no such stages.
    """
    if capabilities(harness.adapter()).builds_interpolations is None:
        raise Unsupported("an adapter that implements BuildsInterpolations")
    for name, op, model in supported(harness):
        adapter: Any = fresh_adapter(harness, model, op)
        if adapter.why_not_interpolated(model, only_path(adapter, model)):
            continue
        for method, decomposition in registry().methods(METHODS).items():
            if decomposition.refuse(op) is None:
                yield name, method, op, halved(harness, model, op, method, name)


def _saved_and_loaded(harness: Harness, op: Op, small: Compressed) -> Any:
    """Return the model after a way through a folder, into one whose weights are all zero."""
    other = harness.model([with_weight(op, np.zeros_like(op.weight))])
    with tempfile.TemporaryDirectory() as folder:
        save(small.model, small.plan, Path(folder) / "saved", harness.adapter())
        return load(
            other,
            Path(folder) / "saved",
            inputs=harness.inputs(probe(op)),
            adapter=harness.adapter(),
        )
