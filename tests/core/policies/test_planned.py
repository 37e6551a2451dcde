from __future__ import annotations

import numpy as np
import pytest
from tests.core.policies.layers import choose

from rankfold.errors import RankfoldError
from rankfold.ops import Linear, Op, describe
from rankfold.plan.plan import LayerPlan, Plan
from rankfold.policies.base import Choice
from rankfold.policies.planned import Planned

OP = Linear(np.random.default_rng(0).standard_normal((13, 11)))


def planned(op: Op) -> Planned:
    replaced = LayerPlan(path="x", method="svd", ranks=(4,), reason="a remark", op=describe(op))
    return Planned.of(Plan(layers=(replaced, LayerPlan(path="y", reason="left"))))


def test_a_layer_gets_what_its_plan_says() -> None:
    assert choose(planned(OP), OP) == Choice("svd", (4,), "a remark")


def test_only_what_is_replaced_is_decided_on() -> None:
    assert planned(OP).layers.keys() == {"x"}


def test_a_layer_of_another_shape_is_an_error_that_names_it() -> None:
    with pytest.raises(RankfoldError, match="layer 'x'"):
        choose(planned(Linear(np.ones((13, 12)))), OP)


def test_a_plan_is_not_written_as_text() -> None:
    with pytest.raises(RankfoldError, match="give the plan itself"):
        Planned.from_text("x")
