"""The settings by which a model is decomposed, and what the model does with a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeAlias

from rankfold.decompose.base import Decomposition, Placement
from rankfold.ops import Chain, Extent

Timer: TypeAlias = Callable[[Sequence[Chain]], Sequence[float]]


@dataclass(frozen=True, eq=False)
class Settings:
    """Settings by which a model is decomposed, whatever the policy.

    Attributes:
        methods: the allowed decompositions by name, in order of preference.
        placement: how the scale is spread over a chain.
        seed: of all randomness.
        executor: works on several layers at once; None for one after the other.
    """

    methods: Mapping[str, Decomposition]
    placement: Placement
    seed: int
    executor: Executor | None = None


@dataclass(frozen=True, eq=False)
class Usage:
    """What the model does with a layer, in one forward pass and beside the layer's op.

    Attributes:
        extents: the extent of the layer's input at each call; None where no example inputs were
            given.
        attended: MACs of products with the table of an `Embedding`, beside look-ups.
        timer: gives the seconds of the layer and of chains in its place.
        counted: whether the MACs of its calls are known, where there were example inputs.
        params_beside: parameters of the layer that its op has not, as they are folded into the
            weight: they go with the layer.
        folded: what the layer computes the op's weight by; "" where that is its own.
        not_interpolated: why no interpolative stages can be in its place; "" where they can.
    """

    extents: Sequence[Extent] | None = None
    attended: int = 0
    timer: Timer | None = None
    counted: bool = True
    params_beside: int = 0
    folded: str = ""
    not_interpolated: str = ""
