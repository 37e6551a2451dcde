"""Which NNX modules compute as a stock layer does."""

from __future__ import annotations

from typing import Any

import pytest
from flax import nnx

from rankfold_jax.nnx.layer_classes import CONSTANTS, KINDS, kernel_name, kind_of


class Renamed(nnx.Linear):
    """Computes the same."""

    def describe(self) -> str:
        return "a linear layer"


class Scaled(nnx.Linear):
    def __call__(self, x: Any) -> Any:
        return 2 * super().__call__(x)


class Queried(nnx.Embed):
    def attend(self, query: Any) -> Any:
        return -super().attend(query)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nnx.Linear(5, 3, rngs=nnx.Rngs(0)), nnx.Linear),
        (Renamed(5, 3, rngs=nnx.Rngs(0)), nnx.Linear),
        (Scaled(5, 3, rngs=nnx.Rngs(0)), None),
        (nnx.Embed(5, 3, rngs=nnx.Rngs(0)), nnx.Embed),
        (Queried(5, 3, rngs=nnx.Rngs(0)), None),
        (nnx.LayerNorm(5, rngs=nnx.Rngs(0)), None),
    ],
)
def test_a_subclass_counts_unless_it_computes_something_else(
    module: nnx.Module, kind: type | None
) -> None:
    assert kind_of(module) is kind


def test_the_kernel_is_held_by_its_name() -> None:
    for module in (nnx.Linear(5, 3, rngs=nnx.Rngs(0)), nnx.Embed(5, 3, rngs=nnx.Rngs(0))):
        assert isinstance(getattr(module, kernel_name(module)), nnx.Param)


def test_constants_are_attributes_and_no_initializers() -> None:
    assert {"in_features", "padding", "strides", "dtype", "dot_general"} <= CONSTANTS
    assert not {"self", "rngs", "kernel_init", "bias_init"} & CONSTANTS
    assert len(KINDS) == len(set(KINDS))
