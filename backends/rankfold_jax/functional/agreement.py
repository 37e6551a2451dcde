"""Check that a compressed model computes what its original does, apart from the factorisation.

A model may ask a layer for its class, count its arrays or take a gradient by its weight; replaced,
the layer answers otherwise, and the model computes something else though the chain is exact. So the
compressed model is run beside the original whose kernels are what the chains multiply out to: what
lies between the two is rounding. How much of it a model brings about is measured, not supposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.extend.core import ClosedJaxpr, Jaxpr

from rankfold.adapters.group_testing import blamed
from rankfold.errors import RankfoldError
from rankfold.faults import let_through, told
from rankfold.ops import Op
from rankfold_jax.functional.inputs import Inputs
from rankfold_jax.functional.pure_function import PureModel, TracedModel
from rankfold_jax.layouts.sharding import epsilon, put

DIFFERS = (
    "once it is replaced the model computes something else: it asks for the layer's class, for the "
    "number of its arrays or for a gradient by its weight"
)
_ROUNDINGS = 100
"""How far above a change of every weight in its last digit the outputs of a chain may lie: its
stages round several times, and terms of CP stages cancel each other."""
_DRAWS, _TRACES = 3, 2

Trial: TypeAlias = Callable[[Sequence[str]], "tuple[PureModel, Mapping[str, Op]] | None"]
Numbers: TypeAlias = npt.NDArray[Any]


class Reference:
    """Original model on its example inputs, to which compressed ones are compared.

    Args:
        flow: the original, with where the layers lie that are replaced.
        inputs: example inputs; numbers are drawn for those that have only a shape.
    """

    def __init__(self, flow: PureModel, inputs: Inputs) -> None:
        rng = np.random.default_rng(0)
        self._flow = flow
        self._inputs = inputs
        self._arrays = [_numbers(array, rng) for array in self._inputs.arrays]
        self._program = TracedModel(flow, self._inputs)

    def left(self, paths: Sequence[str], trial: Trial) -> dict[str, str]:
        """Return by path why layers must be left alone; nothing where the models agree.

        Args:
            paths: of the layers that are to be replaced.
            trial: gives the model in which some of them are, and what their chains multiply out to;
                None where that is not known. It may raise a `RankfoldError`.
        """
        return blamed(paths, lambda some: self._difference(trial, some))

    def _difference(self, trial: Trial, paths: Sequence[str]) -> str:
        """Return what the model does differently without some layers; "" if nothing."""
        try:
            known = trial(paths)
        except RankfoldError as error:
            return str(error)
        if known is None:
            return ""
        small, ops = known
        values = self._with(ops)
        try:
            expected = self._outputs(self._program, values)
        except Exception as error:  # in eval mode, or on numbers that were drawn: nothing is known
            let_through(error)
            return ""
        reason = ""
        # What is traced anew may come out otherwise by itself: a difference has to be there twice.
        for _ in range(_TRACES):
            try:
                outputs = self._outputs(TracedModel(small, self._inputs), small.values)
            except Exception as error:  # whatever the model raises without its layers
                let_through(error)
                reason = f"once it is replaced the model fails with {told(error)}"
                continue
            distances = _distances(outputs, expected)
            if _within(distances, self._allowed(distances, values, expected)):
                return ""
            reason = DIFFERS
        return reason

    def _allowed(
        self, distances: Sequence[float], values: Sequence[Any], expected: Sequence[Numbers]
    ) -> list[float]:
        """Return how far from each expected output rounding may lead, in parts of it."""
        eps = _coarsest(self._program.closed)
        allowed = [math.sqrt(eps)] * len(expected)
        if _within(distances, allowed):  # the rule, for which no more is run
            return allowed
        # What the model makes of a change in the last digit, and whether two runs of it agree.
        runs = [self._outputs(self._program, _changed(values, eps, n)) for n in range(_DRAWS)]
        traced = [TracedModel(self._flow, self._inputs) for _ in range(_TRACES)]
        runs += [self._outputs(program, values) for program in traced]
        changes = zip(*(_distances(run, expected) for run in runs), strict=True)
        return [max(math.sqrt(eps), _ROUNDINGS * max(change)) for change in changes]

    def _with(self, ops: Mapping[str, Op]) -> list[Any]:
        """Return the arrays of the original, with the numbers of ops in its layers."""
        values = list(self._flow.values)
        for path, op in ops.items():
            # A fresh one, as it keeps the index of every number, in 16 bytes each.
            parameter = replace(self._flow.parameters[path])
            kernel, bias = parameter.filled(op)
            values[parameter.kernel] = _like(kernel, values[parameter.kernel])
            if parameter.bias is not None and bias is not None:
                values[parameter.bias] = _like(bias, values[parameter.bias])
        return values

    def _outputs(self, program: TracedModel, values: Sequence[Any]) -> list[Numbers]:
        # An accelerator multiplies with fewer digits than its numbers have unless it is told to.
        with jax.default_matmul_precision("highest"):
            outputs = program.compiled(values, self._arrays)
        return [np.asarray(y) for y in outputs if jnp.issubdtype(y.dtype, jnp.inexact)]


def _numbers(array: Any, rng: np.random.Generator) -> Any:
    """Return an example input; drawn where it has only a shape, or is blank as examples often are.

    A layer gives 0 for 0, and twice as much is 0, too.
    """
    known = not isinstance(array, jax.ShapeDtypeStruct)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array if known else jnp.zeros(array.shape, array.dtype)
    if known and np.unique(np.asarray(array).astype(np.float64)).size > 1:
        return array
    return jnp.asarray(rng.standard_normal(array.shape), array.dtype)


def _like(numbers: Any, array: Any) -> Any:
    """Return numbers with the dtype of an array, where it lies."""
    return put(np.asarray(numbers).astype(array.dtype), getattr(array, "sharding", None))


def _changed(values: Sequence[Any], eps: float, seed: int) -> list[Any]:
    """Return arrays of which each number is changed by its last digit, up or down."""
    rng = np.random.default_rng(seed)

    def changed(array: Any) -> Any:
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return array
        signs = rng.choice((-eps, eps), array.shape)
        return _like(np.asarray(array).astype(np.float64) * (1 + signs), array)

    return [changed(array) for array in values]


def _distances(outputs: Sequence[Numbers], expected: Sequence[Numbers]) -> list[float]:
    """Return the distance of each output to what is expected, in parts of the latter."""
    if [y.shape for y in outputs] != [x.shape for x in expected]:
        return [math.inf] * len(expected)
    distances = []
    for output, before in zip(outputs, expected, strict=True):
        y, x = (a.astype(np.result_type(a.dtype, np.float64)) for a in (output, before))
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        size = np.linalg.norm(x[np.isfinite(x)])
        distance = np.linalg.norm(np.where(same, 0, y - np.where(same, y, x)))
        distances.append(float(distance / size) if size else float(distance))
    return distances


def _within(distances: Sequence[float], allowed: Sequence[float]) -> bool:
    # A distance that is no number is not within anything.
    return all(a <= b for a, b in zip(distances, allowed, strict=True))


def _coarsest(closed: ClosedJaxpr) -> float:
    """Return the largest machine epsilon of what a jaxpr computes in."""
    dtypes = {variable.aval.dtype for variable in _variables(closed.jaxpr)}
    return max(
        (epsilon(dtype) for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)), default=0.0
    )


def _variables(jaxpr: Jaxpr) -> Iterator[Any]:
    """Yield the inputs and results of a jaxpr and of those within it, as far as they are arrays."""
    results = (variable for eqn in jaxpr.eqns for variable in eqn.outvars)
    yield from (v for v in (*jaxpr.invars, *results) if hasattr(v.aval, "dtype"))
    for eqn in jaxpr.eqns:
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda value: isinstance(value, Jaxpr | ClosedJaxpr)
        ):
            if isinstance(inner, Jaxpr | ClosedJaxpr):
                yield from _variables(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)
