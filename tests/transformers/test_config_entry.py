"""The entry of config.json by which a compressed model is opened."""

import json

import msgspec
import pytest

from rankfold.plan.plan import LayerPlan, Plan
from rankfold_transformers.config_entry import METHOD, VERSION, entry, recorded, written

PLAN = Plan(
    policy="Ranks(3)",
    layers=(
        LayerPlan(path="a", method="svd", ranks=(3,), op="Linear 7→5", params=(35, 36)),
        LayerPlan(path="b", op="Linear 5→5", reason="tied", params=(25, 25)),
    ),
)


def test_a_plan_is_written_without_what_stays_and_without_defaults() -> None:
    plan = json.loads(json.dumps(written(PLAN)))
    assert plan["policy"] == "Ranks(3)"
    assert plan["layers"] == [
        {"path": "a", "method": "svd", "ranks": [3], "op": "Linear 7→5", "params": [35, 36]}
    ]
    assert msgspec.convert(plan, Plan).layers == PLAN.layers[:1]


@pytest.mark.parametrize("names", ["model", "file"])
def test_what_is_recorded_is_what_was_entered(names: str) -> None:
    settings = {"quantization_config": entry([written(PLAN)], names)}  # type: ignore[arg-type]
    assert settings["quantization_config"]["version"] == VERSION
    assert recorded(settings) == ([written(PLAN)], names)


@pytest.mark.parametrize(
    "settings", [{}, {"quantization_config": None}, {"quantization_config": {"quant_method": "x"}}]
)
def test_a_configuration_of_another_method_has_no_plans(settings: dict[str, object]) -> None:
    assert recorded(settings) is None


def test_entries_of_older_versions_have_the_names_of_files() -> None:
    assert recorded({"quantization_config": {"quant_method": METHOD}}) == ([], "file")
