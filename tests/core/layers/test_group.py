from __future__ import annotations

import numpy as np

from rankfold.layers.group import LayerGroup
from rankfold.layers.layer import Layer
from rankfold.layers.settings import Settings, Usage
from rankfold.ops import Cost, Linear
from rankfold.plugins.registry import registry


def layers() -> list[Layer]:
    settings = Settings(registry().methods(("svd",)), "balanced", 0)
    ops = [Linear(np.ones((5, 7))), Linear(np.ones((3, 5)), np.ones(3))]
    return [
        Layer((str(index),), lambda op=op: op, settings, Usage([(2,)]))  # type: ignore[misc]  # a default binds it
        for index, op in enumerate(ops)
    ]


def test_any_layers_are_taken_for_a_whole_model() -> None:
    members = layers()
    group = LayerGroup.of(members)
    assert list(group) == members
    assert group.cost_elsewhere == Cost(0, 0)
    assert group.original_cost == Cost(35 + 18, 2 * 35 + 2 * 15)
    assert group.executor is None


def test_a_group_stays_what_it_is() -> None:
    group = LayerGroup(tuple(layers()), Cost(7, 0), Cost(60, 100))
    assert LayerGroup.of(group) is group


def test_a_group_is_a_sequence_of_its_layers() -> None:
    members = layers()
    group = LayerGroup.of(members)
    assert len(group) == 2
    assert group[-1] is members[1]
    assert group[:1] == (members[0],)
