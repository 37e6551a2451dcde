"""Plans in the configuration of a model."""

from typing import Any

import pytest
import transformers as tf
from torch import nn

import rankfold as rf
from rankfold.plan.plan import LayerPlan, Plan
from rankfold_transformers.config_entry import METHOD, entry, written
from rankfold_transformers.records import RankfoldConfig, erase, record, recorded, write

SIZES = {"vocab_size": 11, "n_embd": 4, "n_layer": 1, "n_head": 1, "n_positions": 5}


def gpt2() -> Any:
    return tf.GPT2Model(tf.GPT2Config(**SIZES, bos_token_id=1, eos_token_id=2))


def plan(*paths: str, rank: int = 2) -> Plan:
    return Plan(
        policy="Ranks(2)",
        layers=tuple(
            LayerPlan(path=p, method="svd", ranks=(rank,), op="Linear 4→4", params=(20, 20))
            for p in paths
        ),
    )


def paths(config: Any) -> list[list[str]]:
    return [[layer.path for layer in each.layers] for each in recorded(config)]


def test_an_entry_is_read_whether_it_is_a_dictionary_or_not() -> None:
    config = tf.GPT2Config(**SIZES)
    assert recorded(config) == []
    fields = entry([written(plan("a"))], "model")
    for value in (fields, RankfoldConfig(**fields)):
        config.quantization_config = value
        assert paths(config) == [["a"]]
    config.quantization_config = {"quant_method": "other"}
    assert recorded(config) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 9}, "version 9 of rankfold's format; this rankfold reads version 1"),
        ({"plans": [{"layers": [{"path": 3}]}]}, "holds no plan"),
        ({"plans": [written(plan("a", "a"))]}, "twice in the plan"),
    ],
)
def test_what_is_no_entry_of_this_version_is_an_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(rf.RankfoldError, match=message):
        RankfoldConfig(**fields)


def test_a_model_gets_a_configuration_of_its_own_and_gives_it_back() -> None:
    model = gpt2()
    shared = model.config
    write(model, [plan("a")])
    assert model.config is not shared
    assert not hasattr(shared, "quantization_config")
    assert {id(m.config) for m in model.modules() if hasattr(m, "config")} == {id(model.config)}
    assert METHOD in model.model_tags
    assert model._weight_conversions == []
    write(model, [])
    assert recorded(model.config) == []
    assert METHOD not in (model.model_tags or ())
    assert "_weight_conversions" not in vars(model)


def test_plans_are_added_and_the_last_taken_back() -> None:
    model = gpt2()
    record(model, plan("gone"))
    record(model, plan("h.0.mlp.c_fc"))
    assert paths(model.config) == [["gone"], ["h.0.mlp.c_fc"]]
    erase(model, plan("h.0.mlp.c_fc", rank=3))
    assert len(recorded(model.config)) == 2  # it is another
    erase(model, plan("h.0.mlp.c_fc"))
    assert paths(model.config) == [["gone"]]


def test_a_plan_that_came_with_the_configuration_of_another_model_goes() -> None:
    model = gpt2()
    write(model, [plan("h.0.mlp.c_proj")])  # a layer that is whole in this model
    record(model, plan("h.0.mlp.c_fc"))
    assert paths(model.config) == [["h.0.mlp.c_fc"]]


def test_a_model_within_another_has_its_own_paths() -> None:
    inner = gpt2()
    outer = nn.ModuleDict({"body": inner, "head": nn.Linear(4, 3)})
    record(outer, plan("body.h.0.mlp.c_fc", "head"))
    assert paths(inner.config) == [["h.0.mlp.c_fc"]]


def test_transformers_may_ask_it_as_a_dictionary() -> None:
    config = RankfoldConfig()
    assert config.get("quant_method") == METHOD
    assert config.get("missing", 3) == 3
