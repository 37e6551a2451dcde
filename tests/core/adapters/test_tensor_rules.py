from __future__ import annotations

import numpy as np

from rankfold.adapters.tensor_rules import numbered
from rankfold.ops import Linear
from rankfold.ops.interpolation import gather_order, with_stored_weight


def test_stages_are_numbered_below_the_layer_with_their_biases() -> None:
    chain = (Linear(np.ones((2, 7))), Linear(np.ones((5, 2)), np.ones(5)))
    tensors = numbered("blocks.0.fc", chain)
    assert list(tensors) == [
        "blocks.0.fc.0.weight",
        "blocks.0.fc.1.weight",
        "blocks.0.fc.1.bias",
    ]
    assert tensors["blocks.0.fc.1.weight"].shape == (5, 2)
    assert next(iter(numbered("", chain))) == "0.weight"


def test_of_an_interpolative_stage_the_stored_part_and_the_order_are_kept(
    rng: np.random.Generator,
) -> None:
    stored, pivots = rng.standard_normal((6, 3)), (1, 4, 8)
    stage = Linear(with_stored_weight(stored, pivots, tall=True), pivots=pivots)
    tensors = numbered("fc", (stage,))
    np.testing.assert_array_equal(tensors["fc.0.weight"], stored)
    assert tensors["fc.0.order"].dtype == np.int64
    assert tensors["fc.0.order"].tolist() == list(gather_order(stage))
