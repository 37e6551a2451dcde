"""A decomposition that fails on a layer costs the layer that one decomposition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rankfold.decompose.svd import SVD
from rankfold.layers.settings import Usage, applicable
from rankfold.ops import Linear, Op


class Wrapper:
    """A plugin's decomposition around another one."""

    name = "wrapper"

    def __getattr__(self, name: str) -> Any:
        return getattr(SVD, name)


class FailsWhenAsked(Wrapper):
    @property
    def ranks_of_unfoldings(self) -> Mapping[str, int]:
        raise ValueError("not known yet")


class Refuses(Wrapper):
    def refuse(self, op: Op) -> str:
        return f"not of {op.weight.shape[0]} rows"


OP = Linear(np.random.default_rng(0).standard_normal((11, 17)))


def test_the_methods_that_fail_or_refuse_are_left_out_with_the_reason() -> None:
    methods: Any = {"fails": FailsWhenAsked(), "refuses": Refuses(), "svd": SVD}
    known, refusals = applicable(methods, OP, Usage())
    assert list(known) == ["svd"]
    assert "not known yet" in refusals["fails"]
    assert refusals["refuses"] == "not of 11 rows"


def test_a_wrapper_has_the_optional_parts_of_what_it_wraps() -> None:
    methods: Any = {"wrapper": Wrapper(), "svd": SVD}
    known, _ = applicable(methods, OP, Usage())
    assert known["wrapper"].regresses_later_stages
    assert known["wrapper"].ranks_of_unfoldings == known["svd"].ranks_of_unfoldings != {}
