from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rankfold.errors import RankfoldError, Refused
from rankfold.ops import Linear, blank
from rankfold.plan.plan import LayerPlan
from rankfold.plugins.planned_template import planned_template

OP = Linear(blank(13, 11))


def test_a_layer_without_values_has_the_chain_of_its_plan() -> None:
    chain = planned_template(LayerPlan(path="x", method="svd", ranks=(4,)), OP)
    assert [stage.weight.shape for stage in chain] == [(4, 11), (13, 4)]


def test_pivots_of_the_plan_are_those_of_the_stage() -> None:
    pivots = (0, 3, 5, 12)
    planned = LayerPlan(path="x", method="svd_id", ranks=(4,), pivots=(pivots,))
    _, last = planned_template(planned, OP)
    assert isinstance(last, Linear)
    assert last.pivots == pivots


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": "magic"}, RankfoldError, "magic"),
        ({"ranks": (12,)}, RankfoldError, "rank 12 exceeds 11"),
        ({"method": "tucker2", "ranks": (3, 3)}, Refused, "applies to convolutions"),
        (
            {"method": "svd_id", "pivots": ((0, 1, 2, 13),)},
            RankfoldError,
            "layer 'x': ",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_told(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    planned = msgspec.structs.replace(LayerPlan(path="x", method="svd", ranks=(4,)), **changes)
    with pytest.raises(error, match=message):
        planned_template(planned, OP)
