"""A model as a pure function of its arrays and its inputs, traced once for each kind of inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from rankfold.calibration.losses import failure
from rankfold.errors import RankfoldError
from rankfold.faults import let_through
from rankfold.state.random_states import process_states, set_process_states
from rankfold.state.restoration import Shared
from rankfold_jax.functional.inputs import Inputs, is_array
from rankfold_jax.layouts.parameter_index import ParameterIndex


@dataclass(frozen=True, eq=False)
class PureModel:
    """Model as a pure function.

    Attributes:
        function: of the model's arrays and the inputs, to the outputs; what the model changes in
            itself on the way is dropped.
        values: the model's arrays.
        parameters: of its layers, by path.
        params: which of the arrays are parameters.
    """

    function: Callable[[Sequence[Any], Inputs, Sequence[Any]], Any]
    values: list[Any]
    parameters: Mapping[str, ParameterIndex] = field(default_factory=dict)
    params: Sequence[int] = ()

    def programs(self, inputs: Sequence[Any]) -> list[tuple[TracedModel, list[Any]]]:
        """Return for each batch its program, shared by batches of a kind, and its arrays.

        Raises:
            RankfoldError: the model fails on a batch, which is named.
        """
        known: list[TracedModel] = []
        programs = []
        for index, batch in enumerate(inputs):
            whole = Inputs(batch)
            # Batches of one shape share a trace and a compilation; a last, smaller batch has its
            # own.
            program = next((p for p in known if p.inputs.signature == whole.signature), None)
            if program is None:
                program = TracedModel(self, whole)
                try:
                    program.closed  # noqa: B018  # traced here, where the batch can be named
                except RankfoldError:
                    raise
                except Exception as error:  # whatever the model raises on these inputs
                    let_through(error)
                    raise failure(index, error, batch) from error
                known.append(program)
            programs.append((program, whole.arrays))
        return programs


class TracedModel:
    """Model traced for inputs of one kind.

    Args:
        flow: the model.
        inputs: of the kind.

    Attributes:
        inputs: those that it is traced with.
    """

    def __init__(self, flow: PureModel, inputs: Inputs) -> None:
        self._flow = flow
        self.inputs = inputs
        self._leaves: list[Any] = []
        self._tree: Any = None

    def arrays(self, values: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        """Return the arrays among the outputs; note what stands around them."""
        # What the model draws from them as it is traced is a constant, the same in every trace.
        with _randomness.kept(process_states):
            output = self._flow.function(values, self.inputs, arrays)
        leaves, self._tree = jax.tree.flatten(output)
        # A jaxpr has arrays alone. Other outputs (None, strings, numbers) are kept here with the
        # tree, in a tuple each, so that an output of None is told from a place of an array.
        self._leaves = [None if is_array(leaf) else (leaf,) for leaf in leaves]
        return [leaf for leaf in leaves if is_array(leaf)]

    @cached_property
    def closed(self) -> ClosedJaxpr:
        """Jaxpr of `arrays`: its inputs are the model's arrays, then those of the inputs."""
        traced = self.compiled.trace(self._flow.values, self.inputs.arrays).jaxpr
        assert isinstance(traced, ClosedJaxpr)
        return traced

    @cached_property
    def compiled(self) -> Any:
        """Compiled form of `arrays`, of the trace that `closed` has."""
        return jax.jit(self.arrays)

    def rebuilt(self, arrays: Sequence[Any]) -> Any:
        """Return the outputs as the model gives them, from the arrays among them."""
        rest = iter(arrays)
        leaves = [next(rest) if known is None else known[0] for known in self._leaves]
        return jax.tree.unflatten(self._tree, leaves)


_randomness: Shared[str, Any] = Shared(set_process_states)
