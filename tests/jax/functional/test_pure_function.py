"""A model as a pure function runs no more often than there are kinds of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rankfold_jax.functional.inputs import Inputs
from rankfold_jax.functional.pure_function import PureModel


def test_a_model_is_traced_once_for_its_jaxpr_and_for_its_compiled_form() -> None:
    traces = []

    def function(values: Sequence[Any], inputs: Inputs, arrays: Sequence[Any]) -> dict[str, Any]:
        traces.append(inputs.examples)
        return {"y": values[0] * arrays[0], "name": "sum"}

    model = PureModel(function, [np.float32(3)])
    batches = [np.ones((4, 5), np.float32), np.full((4, 5), 2, np.float32)]
    for batch, (program, arrays) in zip(batches, model.programs(batches), strict=True):
        assert len(program.closed.jaxpr.outvars) == 1
        outputs = program.rebuilt(program.compiled(model.values, arrays))
        assert outputs["name"] == "sum"
        np.testing.assert_array_equal(outputs["y"], 3 * batch)
    assert traces == [4]
