"""Times of layers and models."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from flax import nnx

from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, ConvTranspose, Embedding, Linear, Op, blank
from rankfold_jax.functional.timing import seconds
from rankfold_jax.nnx.adapter import NNXAdapter


def test_fewer_operations_take_less_time() -> None:
    model = nnx.Sequential(nnx.Linear(1024, 1024, rngs=nnx.Rngs(0)))
    chain = (Linear(blank(8, 1024)), Linear(blank(1024, 8), blank(1024)))
    before, after = NNXAdapter().seconds(model, "layers.0", [chain], ((1024,),))
    assert after < before


def geometries() -> Iterator[tuple[Op, tuple[int, ...]]]:
    def normal(*shape: int) -> Array:
        return np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    yield Linear(normal(6, 2), normal(6), groups=3), (2,)
    yield Conv(normal(6, 2, 3, 2), normal(6), stride=2, padding=1, groups=2), (2, 9, 8)
    yield ConvTranspose(normal(6, 4, 3), stride=2, padding=((1, 0),), output_padding=1), (2, 7)
    yield Conv(normal(6, 1, 3), groups=6, dilation=2), (2, 9)
    yield Embedding(normal(11, 4)), (2, 3)


@pytest.mark.parametrize(("op", "extent"), list(geometries()))
def test_a_layer_and_its_forms_are_timed_at_each_extent(op: Op, extent: tuple[int, ...]) -> None:
    def build(chain: Chain) -> None:
        if len(chain) > 1:
            raise Refused("no such layers")

    times = seconds(op, [(op,), (op, op)], [extent, extent], np.float32, build)
    assert all(0 < t < 1 for t in times[:2])
    assert times[2] == np.inf
