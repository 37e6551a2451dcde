"""Steps that the checks share: compress a model, compare the outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from rankfold.adapters.base import Adapter
from rankfold.ops import Conv, ConvTranspose, Embedding, Extent, Linear, Op
from rankfold.pipeline.api import compress
from rankfold.pipeline.result import Compressed
from rankfold.plugins.registry import registry
from rankfold.policies.ranks import Ranks
from rankfold.testing.cases import distance, methods, probe
from rankfold.testing.check import TOLERANCE
from rankfold.testing.harness import Harness, as_float64


def fresh_adapter(harness: Harness, model: Any, op: Op, dtype: str = "float32") -> Adapter:
    """Return a fresh adapter that has seen the model run, which some frameworks need."""
    adapter = harness.adapter()
    adapter.trace(model, harness.inputs(probe(op), dtype))
    return adapter


def only_path(adapter: Adapter, model: Any) -> str:
    """Return the path of the only layer of a model."""
    (path,) = adapter.layers(model)
    return path


def compressed(
    harness: Harness,
    model: Any,
    op: Op,
    policy: Any,
    method: str | None,
    name: str,
    dtype: str = "float32",
) -> Compressed:
    """Return a model compressed on its own inputs, every layer replaced."""
    small = compress(
        model,
        policy,
        inputs=harness.inputs(probe(op), dtype),
        adapter=harness.adapter(),
        methods=method if method is not None else methods(op)[0],
    )
    all_replaced(name, small)
    return small


def halved(harness: Harness, model: Any, op: Op, method: str, name: str) -> Compressed:
    """Return a model of one case compressed to half of its ranks, for any number of checks.

    It is compressed once for a harness, on the model of the check that comes first. Models of one
    case are equal, and no check changes what this gives.
    """
    # On the harness itself, which need not be hashable: what it keeps goes with it.
    kept: dict[tuple[str, str], Compressed] = vars(harness).setdefault("_halved", {})
    key = (name, method)
    if key not in kept:
        kept[key] = compressed(harness, model, op, Ranks(half(op, method)), method, name)
    return kept[key]


def all_replaced(name: str, small: Compressed) -> None:
    """Assert that no layer was left alone."""
    # With the reason, which says most often what the adapter has missed.
    for layer in small.plan.layers:
        assert layer.method is not None, f"{name}: {layer.path!r} is left alone: {layer.reason}"


def half(op: Op, method: str) -> tuple[int, ...]:
    """Half of the full ranks."""
    most = registry().methods([method])[method].max_ranks(op)
    return tuple(max(1, rank // 2) for rank in most)


def drawn_linear(out: int, into: int) -> Linear:
    """Return a fully connected layer with random numbers."""
    rng = np.random.default_rng(out)
    weight = rng.standard_normal((out, into)).astype(np.float32)
    return Linear(weight, rng.standard_normal(out).astype(np.float32))


def extent(op: Op, shape: tuple[int, ...]) -> Extent:
    """Return the extent of an input of that shape."""
    if isinstance(op, Embedding):
        return shape
    if isinstance(op, (Conv, ConvTranspose)):
        return (shape[0], *shape[2:])
    return shape[:-1]


def same(name: str, actual: Any, expected: Any, what: str, *, exact: bool = False) -> None:
    """Assert that two outputs agree."""
    off = distance(actual, expected)
    limit = 0.0 if exact else TOLERANCE
    assert off <= limit, f"{name}: {what} something else, off by {off:.3g} of the output"


def unchanged(name: str, before: Any, after: Any) -> None:
    """Assert that a model has the parameters it had."""
    assert set(before) == set(after), f"{name}: the original has other parameters than before"
    for key, array in before.items():
        same = np.array_equal(as_float64(array), as_float64(after[key]))
        assert same, f"{name}: parameter {key!r} of the original has changed"


def epsilon(dtype: str) -> float:
    """Return the machine epsilon of a float dtype."""
    import ml_dtypes  # makes bfloat16 known to NumPy

    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]  # it has no types
