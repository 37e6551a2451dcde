"""Layers without a model, and what a policy chooses for one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankfold.layers.layer import Layer
from rankfold.layers.settings import Settings, Usage
from rankfold.ops import Extent, Op
from rankfold.plugins.registry import registry
from rankfold.policies.base import Choice, Policy

DEFAULT = ("svd", "tucker2", "spatial_svd", "channel_svd")


def low_rank(rng: np.random.Generator, rank: int, *shape: int) -> np.ndarray:
    left, right = rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, *shape[1:]))
    return np.tensordot(left, right, axes=1) + 0.01 * rng.standard_normal(shape)


def layer(
    op: Op, methods: tuple[str, ...] = DEFAULT, extents: Sequence[Extent] | None = None
) -> Layer:
    settings = Settings(registry().methods(methods), "balanced", 0)
    return Layer(("x",), lambda: op, settings, Usage(extents))


def choose(policy: Policy, op: Op, methods: tuple[str, ...] = DEFAULT) -> Choice:
    (choice,) = policy.allocate([layer(op, methods)])
    return choice
