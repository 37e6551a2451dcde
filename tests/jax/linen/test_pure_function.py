"""Bound Linen modules as functions of their variables."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rankfold import RankfoldError
from rankfold_jax.functional.inputs import Inputs
from rankfold_jax.linen.pure_function import check_bound, check_replaced, flow, with_values

X = np.ones((2, 5), np.float32)


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        steps = self.variable("a_state", "steps", lambda: jnp.zeros(()))
        steps.value = steps.value + 1
        scale = self.param("scale", nn.initializers.ones, (5,))
        return x * scale + steps.value


def bound() -> nn.Module:
    return Counting().bind(
        {"params": {"scale": jnp.full(5, 2.0)}, "a_state": {"steps": jnp.ones(())}}
    )


def test_parameters_come_first_and_what_is_written_is_dropped() -> None:
    model = flow(bound())
    inputs = Inputs(X)
    assert list(model.params) == [0]
    assert [np.shape(value) for value in model.values] == [(5,), ()]
    for _ in range(2):
        y = model.function(model.values, inputs, inputs.arrays)
        np.testing.assert_array_equal(y, 2 * X + 2)
    y = model.function([jnp.zeros(5), jnp.asarray(3.0)], inputs, inputs.arrays)
    np.testing.assert_array_equal(y, 0 * X + 4)


def test_other_values_are_bound_in_that_order() -> None:
    model = bound()
    other = with_values(model, [jnp.zeros(5), jnp.asarray(3.0)])
    assert other.variables["params"]["scale"].tolist() == [0] * 5
    assert float(other.variables["a_state"]["steps"]) == 3
    bare = Counting().bind({"a_state": {"steps": jnp.ones(())}})
    assert "params" not in with_values(bare, [jnp.asarray(3.0)]).variables


def test_a_module_without_variables_is_told_how_to_get_them() -> None:
    with pytest.raises(RankfoldError, match=r"pass module.bind\(variables\)"):
        check_bound(Counting())


def test_a_layer_that_was_not_replaced_and_a_model_that_fails_are_named() -> None:
    module, variables = bound().unbind()
    check_replaced(module, variables, set(), Inputs(X))
    with pytest.raises(RankfoldError, match=r"layer 'a\.b' is called in a way"):
        check_replaced(module, variables, {("a", "b")}, Inputs(X))
    wrong: Any = Inputs(X[:, :4])
    with pytest.raises(RankfoldError, match="the compressed model fails with"):
        check_replaced(module, variables, set(), wrong)
