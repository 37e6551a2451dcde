"""Layers that give the outputs of a model: by names where no trace tells, and what policies do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from rankfold_numpy.adapter import NumpyAdapter
from tests.core.numpy_models import model

import rankfold as rf
from rankfold.adapters.base import Trace
from rankfold.adapters.output_layers import by_names, guessed
from rankfold.policies.base import Choice

NAMES = {
    "numbered layers of a sequence": (["0", "2", "10", "9"], ["10"]),
    "a sequence in a module": (["layers.0", "layers.2"], ["layers.2"]),
    "fc at the top": (["conv1", "layer1.0.conv1", "fc"], ["fc"]),
    "fc1 and fc2": (["conv1", "fc1", "fc2"], ["fc2"]),
    "Dense_1": (["Conv_0", "Dense_0", "Dense_1"], ["Dense_1"]),
    "the last of a classifier": (
        ["features.0", "classifier.0", "classifier.6", "classifier.3"],
        ["classifier.6"],
    ),
    "several heads": (
        ["body.0", "heads.box.0", "heads.box.1", "heads.cls"],
        ["heads.box.1", "heads.cls"],
    ),
    "named heads": (
        ["body.0", "class_head", "box_head.fc1", "box_head.fc2"],
        ["class_head", "box_head.fc2"],
    ),
    "a language model": (["model.layers.0.mlp.fc1", "lm_head"], ["lm_head"]),
    "a masked language model": (
        ["bert.pooler.dense", "cls.predictions.decoder", "cls.predictions.transform.dense"],
        ["cls.predictions.decoder"],
    ),
    "a wrapper": (["module.conv", "module.fc"], ["module.fc"]),
    "what is no wrapper": (["body.conv", "body.fc"], []),
    "out_proj of attention": (["layers.0.attn.out_proj", "layers.0.attn.q"], []),
    "a head in every block": (["blocks.0.head", "blocks.1.head"], []),
    "fc within a block": (["stem.conv", "encoder.fc"], []),
}


@pytest.mark.parametrize(("paths", "outputs"), NAMES.values(), ids=NAMES)
def test_names_tell(paths: list[str], outputs: list[str]) -> None:
    assert by_names(paths, ("module",)) == frozenset(outputs)


def test_where_names_do_not_tell_it_is_the_last_layer() -> None:
    assert list(guessed(["stem", "encoder.fc", "encoder.fd"])) == ["encoder.fd"]
    assert guessed([]) == {}


class Half:
    """A policy of others, which says nothing of what it judges."""

    name = "half"

    def allocate(self, layers: Any) -> Iterator[Choice]:
        yield from (Choice("svd", (2,)) for _ in layers)


class Silent(NumpyAdapter):  # type: ignore[misc]  # the example has no types
    """An adapter that does not tell which layers give the outputs."""

    def trace(self, model: Any, inputs: Any) -> Trace:
        seen = super().trace(model, inputs)
        return Trace(seen.extents, seen.refusals)


def replaced(policy: Any, adapter: type = NumpyAdapter, **options: Any) -> list[str]:
    plan = rf.plan(model(40, 39, 38, 37), policy, adapter=adapter(), **options)
    return [layer.path for layer in plan.replaced]


INPUTS = np.ones((1, 40), np.float32)
ONE_AT_A_TIME = [rf.VBMF(), rf.Energy(0.5), rf.Ratio(0.3), Half()]


@pytest.mark.parametrize("adapter", [NumpyAdapter, Silent])
@pytest.mark.parametrize("inputs", [None, INPUTS], ids=["untraced", "traced"])
@pytest.mark.parametrize("policy", ONE_AT_A_TIME, ids=lambda policy: policy.name)
def test_policies_that_judge_one_layer_leave_the_last_alone(
    policy: Any, inputs: Any, adapter: type
) -> None:
    plan = rf.plan(model(40, 39, 38, 37), policy, inputs=inputs, adapter=adapter())
    assert [layer.path for layer in plan.replaced] == ["0", "1"]
    assert "name it with include= or overrides=" in plan["2"].reason


@pytest.mark.parametrize("policy", [rf.Budget(params=0.5), rf.Ranks(3)], ids=repr)
def test_policies_that_judge_the_whole_or_nothing_decide_themselves(policy: Any) -> None:
    assert "2" in replaced(policy, inputs=INPUTS)


@pytest.mark.parametrize(
    "options",
    [{"include": "*"}, {"include": ["0", "2"]}, {"overrides": {"2": rf.Energy(0.4)}}],
    ids=["all", "some", "overridden"],
)
def test_a_layer_that_is_named_is_compressed(options: Mapping[str, Any]) -> None:
    assert "2" in replaced(rf.Energy(0.5), inputs=INPUTS, **options)


def test_an_excluded_body_does_not_open_the_head() -> None:
    assert replaced(rf.Energy(0.5), inputs=INPUTS, exclude=["0", "1"]) == []


def test_a_model_of_nothing_but_its_outputs_is_compressed() -> None:
    plan = rf.plan(model(40, 39), rf.Energy(0.5), inputs=INPUTS, adapter=NumpyAdapter())
    assert plan["0"].method == "svd"


def test_a_policy_must_say_what_there_is_to_judge() -> None:
    policy: Any = Half()
    policy.judges = "everything"
    with pytest.raises(rf.RankfoldError, match="judges is 'everything'; use one of"):
        rf.plan(model(40, 39), policy, adapter=NumpyAdapter())


def test_a_rank_from_few_rows_says_so() -> None:
    plan = rf.plan(model(40, 31, 33, 37), rf.VBMF(), adapter=NumpyAdapter())
    plan = rf.Plan.from_json(plan.to_json())
    few = "EVBMF had 31 rows to go by: fewer than 32 say little of a rank"
    assert few in plan["0"].reason
    assert plan["0"].method == "svd"
    words = [word for line in str(plan).splitlines() for word in line.split()]
    assert {"31", "rows"} <= set(words)
    other = rf.plan(model(40, 33, 34, 37), rf.VBMF(), adapter=NumpyAdapter())
    assert all("rows" not in layer.reason for layer in other.layers)
    energy = rf.plan(model(40, 31, 33, 37), rf.Energy(0.5), adapter=NumpyAdapter())
    assert all("rows" not in layer.reason for layer in energy.layers)
