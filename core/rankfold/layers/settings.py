"""The settings by which a model is decomposed, and what the model does with a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeAlias

from rankfold.decompose.base import Decomposition, Placement
from rankfold.decompose.guarded import Guarded
from rankfold.errors import Refused
from rankfold.ops import Chain, Extent, Op

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
    """Use that the model makes of a layer, in one forward pass and beside the layer's op.

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


def applicable(
    methods: Mapping[str, Decomposition], op: Op, usage: Usage
) -> tuple[dict[str, Guarded], dict[str, str]]:
    """Return the methods that apply to a layer by name, and for the others why they do not."""
    known: dict[str, Guarded] = {}
    refusals: dict[str, str] = {}
    for name, method in methods.items():
        try:
            guarded = Guarded(name, method)
            reason = guarded.refuse(op)
        except Refused as refused:
            refusals[name] = refused.reason
            continue
        if reason is None and guarded.interpolates and usage.not_interpolated:
            reason = usage.not_interpolated
        if reason is None:
            known[name] = guarded
        else:
            refusals[name] = reason
    return known, refusals
