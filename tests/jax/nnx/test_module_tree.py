"""Paths, sharing and exchange of the modules of an NNX model."""

from typing import Any

import pytest
from flax import nnx

import rankfold as rf


def linear(inputs: int = 11, outputs: int = 11, **options: Any) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0), **options)


def test_a_dotted_key_that_hides_a_layer_is_an_error() -> None:
    model = nnx.Dict({"a.b": linear(11, 7), "a": nnx.Dict(b=linear(11, 5))})
    with pytest.raises(rf.RankfoldError, match=r"two modules have the path 'a.b'"):
        rf.plan(model, rf.Ranks(2))
