"""What one abstract forward pass of an NNX model shows, and what it leaves."""

from typing import Any

import numpy as np
import pytest
from flax import nnx

import rankfold as rf

X = np.random.default_rng(1).standard_normal((2, 11)).astype(np.float32)


def linear(inputs: int = 11, outputs: int = 11, **options: Any) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0), **options)


class Sowing(nnx.Module):
    """A model that keeps its activations."""

    def __init__(self) -> None:
        self.fc = linear(11, 7)

    def __call__(self, x: Any) -> Any:
        y = self.fc(x)
        self.sow(nnx.Intermediate, "seen", y)
        return y


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
def test_a_model_that_sows_is_traced_and_left_without_what_it_sowed() -> None:
    model = Sowing()
    small = rf.compress(model, rf.Ranks(2), inputs=X)
    assert small.plan["fc"].method == "svd"
    assert not hasattr(model, "seen")
    assert not hasattr(small.model, "seen")
