"""Times of layers and models."""

from __future__ import annotations

from flax import nnx

from rankfold.ops import Linear, blank
from rankfold_jax.nnx.adapter import NNXAdapter


def test_fewer_operations_take_less_time() -> None:
    model = nnx.Sequential(nnx.Linear(1024, 1024, rngs=nnx.Rngs(0)))
    chain = (Linear(blank(8, 1024)), Linear(blank(1024, 8), blank(1024)))
    before, after = NNXAdapter().seconds(model, "layers.0", [chain], ((1024,),))
    assert after < before
