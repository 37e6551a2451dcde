"""Bound Linen modules as pure functions of their variables."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import jax
from flax import linen as nn

from rankfold.errors import RankfoldError
from rankfold.faults import let_through, told
from rankfold_jax.functional.inputs import Inputs
from rankfold_jax.functional.pure_function import PureModel
from rankfold_jax.linen.interception import Path, noting
from rankfold_jax.linen.tracing import applied


def flow(model: nn.Module) -> PureModel:
    """Return a bound module as a pure function of its variables, the parameters first."""
    check_bound(model)
    module, variables = model.unbind()
    params = variables.get("params", {})
    others = {name: value for name, value in variables.items() if name != "params"}
    # As a tuple the parameters come first, whatever the names of the other collections are.
    values, tree = jax.tree.flatten((params, others))

    def function(values: Sequence[Any], inputs: Inputs, arrays: Sequence[Any]) -> Any:
        params, others = jax.tree.unflatten(tree, values)

        def call(*args: Any, **kwargs: Any) -> Any:
            return applied(module, {"params": params, **others}, *args, **kwargs)

        return inputs.output(call, arrays)

    return PureModel(function, values, params=range(len(jax.tree.leaves(params))))


def with_values(model: nn.Module, values: Sequence[Any]) -> nn.Module:
    """Return a module bound to other arrays, in the order of `PureModel.values`."""
    module, variables = model.unbind()
    others = {name: value for name, value in variables.items() if name != "params"}
    tree = jax.tree.structure((variables.get("params", {}), others))
    params, others = jax.tree.unflatten(tree, values)
    return module.bind({"params": params, **others} if "params" in variables else others)


def check_bound(model: nn.Module) -> None:
    """Raise a `RankfoldError` for a module without variables."""
    if model.scope is None:
        raise RankfoldError(
            "the Linen module has no variables: pass module.bind(variables) instead of module"
        )


def check_replaced(small: nn.Module, variables: Any, planned: Set[Path], inputs: Inputs) -> None:
    """Trace a compressed module, unbound: every planned layer must have been replaced.

    Raises:
        RankfoldError: one was not, or the module fails.
    """

    def forward(variables: Any, arrays: list[Any]) -> Any:
        return inputs.call(
            lambda *args, **kwargs: applied(small, variables, *args, **kwargs), arrays
        )

    try:
        fired = noting(lambda: jax.eval_shape(forward, variables, inputs.arrays))
    except Exception as error:  # whatever the model raises without its layers
        let_through(error)
        raise RankfoldError(f"the compressed model fails with {told(error)}") from error
    missed = sorted(".".join(path) for path in planned - fired)
    if missed:
        raise RankfoldError(f"layer {missed[0]!r} is called in a way that cannot be replaced")
