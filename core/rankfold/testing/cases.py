"""The layers that the checks are made on. All sizes are distinct, so no transposition can hide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from rankfold.decompose.base import Factorization
from rankfold.decompose.spectrum import Spectrum
from rankfold.linalg import Array
from rankfold.ops import Conv, ConvTranspose, Embedding, Linear, Op, channels
from rankfold.ops.ownership import copied
from rankfold.plugins.registry import registry
from rankfold.testing.harness import Harness, Unsupported

# Distinct, and larger than every dilated kernel among the cases.
_SPATIAL = (13, 17, 11)
_BATCH = 2
"""Examples of a probe: with one alone a lost batch axis would not be seen."""


def _drawn(make: Callable[..., Any], *shape: int, bias: bool = True, **geometry: Any) -> Op:
    rng = np.random.default_rng(0)
    # Scaled by the number of inputs, so that outputs are near 1 and one tolerance serves all cases.
    weight = rng.standard_normal(shape).astype(np.float32) / math.sqrt(math.prod(shape[1:]))
    options = dict(geometry)
    if make is not Embedding:
        options["bias"] = rng.standard_normal(shape[0]).astype(np.float32) if bias else None
    op: Op = make(weight, **options)
    return op


CASES: dict[str, Op] = {
    "linear": _drawn(Linear, 7, 11),
    "linear without bias": _drawn(Linear, 13, 5, bias=False),
    "embedding": _drawn(Embedding, 19, 6),
    "convolution 1-d": _drawn(Conv, 11, 7, 5, stride=2, padding=3, dilation=2),
    "convolution 2-d": _drawn(Conv, 11, 7, 5, 3, stride=(2, 3), padding=(2, 1), dilation=(1, 2)),
    "convolution without bias": _drawn(Conv, 9, 5, 3, 4, padding=(1, 2), bias=False),
    "convolution 1×1": _drawn(Conv, 10, 7, 1, 1, stride=(1, 2)),
    "convolution, same padding": _drawn(Conv, 9, 5, 3, 7, padding="same"),
    "convolution, grouped": _drawn(Conv, 15, 4, 3, 5, groups=3, padding=(1, 2), stride=(2, 1)),
    "convolution 3-d": _drawn(Conv, 7, 5, 3, 2, 4, stride=(1, 2, 1), padding=(1, 0, 2)),
    "transposed convolution": _drawn(
        ConvTranspose, 9, 7, 4, 3, stride=(2, 3), padding=(1, 0), output_padding=(1, 2)
    ),
}
"""A layer of every kind, by name."""


WIDE: dict[str, Op] = {"convolution, wide patches": _drawn(Conv, 5, 29, 12, 14)}
"""Layers whose patches are too wide for a moment of their own."""

BRIEF = ("linear", "embedding", "convolution 2-d", "transposed convolution")
"""One case of each kind."""


def supported(
    harness: Harness, dtype: str = "float32", names: Iterable[str] = tuple(CASES)
) -> Iterator[tuple[str, Op, Any]]:
    """Name, op and native model of every case that the framework has a layer for."""
    for name in names:
        op = CASES[name] if name in CASES else WIDE[name]
        try:
            model = harness.model([op], dtype)
        except Unsupported:
            continue
        yield name, op, model


def probe(op: Op, seed: int = 1) -> Array:
    """Return a random input for an op."""
    rng = np.random.default_rng(seed)
    if isinstance(op, Embedding):
        return rng.integers(0, len(op.weight), (_BATCH, 3))
    into = channels(op)[1]
    if isinstance(op, Linear):
        return rng.standard_normal((_BATCH, 3, into)).astype(np.float32)
    return rng.standard_normal((_BATCH, into, *_SPATIAL[: op.weight.ndim - 2])).astype(np.float32)


def rows(op: Op) -> Array:
    """Return a random input as `Adapter.run` gets it: float64, and one axis of rows."""
    x = probe(op)
    if isinstance(op, Embedding):
        return x.reshape(-1)
    return (x.reshape(-1, x.shape[-1]) if isinstance(op, Linear) else x).astype(np.float64)


def methods(op: Op) -> list[str]:
    """Return the decompositions that every adapter is expected to build for a layer."""
    if isinstance(op, ConvTranspose):
        return ["tucker2", "channel_svd"]
    wanted = registry().methods(["svd", "tucker2", "channel_svd", "spatial_svd", "cp", "cp3"])
    return [name for name, method in wanted.items() if method.refuse(op) is None]


EXACT = frozenset({"svd", "tucker2", "channel_svd", "spatial_svd"})
"""The decompositions that do not depend on chance."""


def decomposed(op: Op, name: str, *, full: bool) -> Factorization:
    """Return an op decomposed at full rank, or at half of it."""
    factored = _factored(op, name, full)
    # Modules may keep the arrays that they are built from, and change them.
    return replace(factored, chain=tuple(map(copied, factored.chain)))


# Fits by CP take longer than most checks, and every check of every adapter is about the same ones.
@lru_cache(maxsize=128)
def _factored(op: Op, name: str, full: bool) -> Factorization:
    method = registry().methods([name])[name]
    most = method.max_ranks(op)
    ranks = most if full else tuple(max(1, rank // 2) for rank in most)
    rng = np.random.default_rng(0)
    return method.decompose(op, ranks, spectrum=Spectrum(op), placement="balanced", rng=rng)


def square(size: int) -> Linear:
    """Return a square layer, which can be applied to its own output."""
    layer = _drawn(Linear, size, size)
    assert isinstance(layer, Linear)
    return replace(layer, bias=None)


def distance(a: Any, b: Any) -> float:
    """‖a − b‖ / ‖b‖; infinite where the shapes differ."""
    left, right = np.asarray(a).astype(np.float64), np.asarray(b).astype(np.float64)
    if left.shape != right.shape:
        return math.inf
    size = float(np.linalg.norm(right))
    return float(np.linalg.norm(left - right)) / max(size, np.finfo(float).tiny)
