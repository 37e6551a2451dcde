"""Two runs of one model side by side, in one of which layers are replaced as they are met.

The jaxpr of the model is evaluated equation by equation, each for all batches and in both runs. At
the first product of a layer its replacement is decided on, and what its chain stands for is put in
the place of its kernel and its bias in the second run. Values that are only a parameter moved about
are made when they are read, so that those from before do not survive. A scan over a stack of layers
meets one of them in each turn. Other loops give their layers inputs that depend on all turns at
once: these are decided on before it, without sums over inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Var

from rankfold.adapters.base import LayerVisitor
from rankfold.calibration.batches import Calibration
from rankfold.ops import Op
from rankfold_jax.calibration.layer_products import LayerProduct, layer_product
from rankfold_jax.functional.pure_function import PureModel
from rankfold_jax.jaxpr import control_flow as flow
from rankfold_jax.jaxpr.dataflow import Dataflow, bind, step
from rankfold_jax.jaxpr.element_index import IndexedValue, label_of
from rankfold_jax.jaxpr.parameter_uses import ParameterUse, product
from rankfold_jax.paired_run.layer_visits import Batch, LayerVisits
from rankfold_jax.paired_run.values import (
    DeferredParameter,
    Pair,
    Value,
    both,
    last_reads,
    moved_lazily,
    read,
    slice_of,
    stacked,
    structure,
    turns_of,
)

Inside: TypeAlias = Sequence[IndexedValue | None]
"""The operands of an equation that are tracked."""


def run_paired(
    model: PureModel,
    calibration: Calibration,
    layers: Mapping[str, Op],
    visit: LayerVisitor,
    *,
    sequential: bool,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Meet layers as they are called; see `rankfold.adapters.base.Calibrates`.

    Args:
        model: the model, with where each of the layers lies.
        calibration: the batches.
        layers: the layers to meet.
        visit: gives the chain of a layer.
        sequential: whether the replacements work on what the replacements before them give.
        rng: draws the sample of positions.
    """
    batches = []
    first = 0
    for program, arrays in model.programs(calibration.inputs):
        batches.append(Batch(first, program.inputs.examples, program.closed, arrays))
        first += program.inputs.examples
    paired = _PairedRun(model, layers, visit, rng, first, sequential=sequential)
    groups: dict[Any, list[Batch]] = {}
    for batch in batches:
        groups.setdefault(structure(batch.closed.jaxpr), []).append(batch)
    for group in groups.values():
        paired.run(group)
    return {path: error.value for path, error in paired.visits.errors.items()}


@dataclass(frozen=True, eq=False)
class _Lane:
    """An equation in the jaxpr of one batch; several are evaluated in lock step.

    Attributes:
        eqn: the equation.
        operands: in both runs.
        batch: the batch.
    """

    eqn: JaxprEqn
    operands: Sequence[Value]
    batch: Batch


class _PairedRun:
    def __init__(
        self,
        model: PureModel,
        layers: Mapping[str, Op],
        visit: LayerVisitor,
        rng: np.random.Generator,
        examples: int,
        *,
        sequential: bool,
    ) -> None:
        self._parameters = {
            path: parameter for path, parameter in model.parameters.items() if path in layers
        }
        self._paths = {parameter.kernel: path for path, parameter in self._parameters.items()}
        self._values = model.values
        self._layers = layers
        self._sequential = sequential
        self.visits = LayerVisits(self._parameters, model.values, layers, visit, rng, examples)

    def run(self, batches: Sequence[Batch]) -> None:
        """Run both models on batches whose jaxprs have the same structure."""
        lazy = {
            leaf
            for parameter in self._parameters.values()
            for leaf in (parameter.kernel, parameter.bias)
        }
        values: list[Value] = [
            DeferredParameter(IndexedValue.whole(leaf, jnp.shape(value)))
            if leaf in lazy
            else (value, value)
            for leaf, value in enumerate(self._values)
        ]
        inputs = [[*values, *((x, x) for x in batch.arrays)] for batch in batches]
        self._evaluate([batch.closed for batch in batches], inputs, batches)

    def _evaluate(
        self,
        closed: Sequence[ClosedJaxpr],
        inputs: Sequence[Sequence[Value]],
        batches: Sequence[Batch],
    ) -> list[list[Value]]:
        """Return the outputs of each batch."""
        jaxprs = [body.jaxpr for body in closed]
        envs: list[dict[Var, Value]] = []
        for body, operands in zip(closed, inputs, strict=True):
            env = dict(zip(body.jaxpr.invars, operands, strict=True))
            env.update((v, (c, c)) for v, c in zip(body.jaxpr.constvars, body.consts, strict=True))
            envs.append(env)
        last = [last_reads(jaxpr) for jaxpr in jaxprs]
        for index, eqns in enumerate(zip(*(jaxpr.eqns for jaxpr in jaxprs), strict=True)):
            lanes = [
                _Lane(eqn, read(env, eqn.invars), batch)
                for eqn, env, batch in zip(eqns, envs, batches, strict=True)
            ]
            outputs = self._apply(lanes)
            # Values are let go of after their last use: there are those of all batches at once.
            for env, eqn, results, ends in zip(envs, eqns, outputs, last, strict=True):
                env.update(zip(eqn.outvars, results, strict=True))
                for var in ends.get(index, ()):
                    env.pop(var, None)
        return [read(env, jaxpr.outvars) for env, jaxpr in zip(envs, jaxprs, strict=True)]

    def _apply(self, lanes: Sequence[_Lane]) -> list[list[Value]]:
        eqn = lanes[0].eqn
        inside = [
            value.tracked if isinstance(value, DeferredParameter) else None
            for value in lanes[0].operands
        ]
        if any(value is not None for value in inside):
            outputs = self._controlled(lanes, inside)
            if outputs is not None:
                return outputs
            if eqn.primitive.name == "optimization_barrier":
                return [list(lane.operands) for lane in lanes]
            moved = [moved_lazily(lane.eqn, lane.operands) for lane in lanes]
            if all(values is not None for values in moved):
                return [[value] for value in moved if value is not None]
            products = self._sites([lane.eqn for lane in lanes], inside)
            if products is not None:
                return self._meet(lanes, products)
            self._pass_by(eqn, inside)
        return self._both(lanes)

    def _controlled(self, lanes: Sequence[_Lane], inside: Inside) -> list[list[Value]] | None:
        """Evaluate an equation that runs other jaxprs; None for any other."""
        batches = [lane.batch for lane in lanes]
        parts: list[Any] = [flow.split(lane.eqn) for lane in lanes]
        match parts[0]:
            case None | flow.ShardMap():
                return None
            case flow.Call():
                bodies = [part.body for part in parts]
                return self._evaluate(bodies, [lane.operands for lane in lanes], batches)
            case flow.Scan() as scan if len({turns_of(part) for part in parts}) == 1:
                self._foresee(lanes[0].eqn, inside, scan.operands(inside)[2])
                return self._scan(lanes, parts) if scan.length else self._both(lanes)
            case flow.Cond():
                taken = self._taken(lanes, parts)
                if taken is not None:
                    return self._evaluate(taken, [lane.operands[1:] for lane in lanes], batches)
        self._foresee(lanes[0].eqn, inside)
        if len(lanes) > 1:  # each goes its own way, once what they share is decided
            return [self._apply([lane])[0] for lane in lanes]
        (part,) = parts
        whiles = isinstance(part, flow.While)
        return [self._while(lanes[0], part)] if whiles else self._both(lanes)

    def _both(self, lanes: Sequence[_Lane]) -> list[list[Value]]:
        return [both(lane.eqn, self._resolved(lane.operands)) for lane in lanes]

    def _resolved(self, values: Sequence[Value]) -> list[Pair]:
        return [
            self._pair(value) if isinstance(value, DeferredParameter) else value for value in values
        ]

    def _pair(self, value: DeferredParameter) -> Pair:
        """Return what both runs go on with."""
        first = self._parameter(value, 0)
        leaf = value.tracked.label.leaf
        if not self._sequential or leaf not in self.visits.new:
            return first, first
        return first, self._parameter(value, 1)

    def _parameter(self, value: DeferredParameter, which: int) -> Any:
        """Return a parameter of the model (0) or of the compressed one (1)."""
        leaf: Any = value.tracked.label.leaf
        first = self._values[leaf]
        return value.of(self.visits.new.get(leaf, first) if which else first)

    def _sites(self, eqns: Sequence[JaxprEqn], inside: Inside) -> list[LayerProduct] | None:
        leaves: set[Any] = {value.label.leaf for value in inside if value is not None}
        if len(leaves) != 1 or not leaves <= self._paths.keys():
            return None
        path = self._paths[leaves.pop()]
        # Batches of a kind share their equations, and a product's layout takes a while to find.
        known: dict[int, LayerProduct | None] = {}
        for eqn in eqns:
            if id(eqn) not in known:
                parameter, op = self._parameters[path], self._layers[path]
                known[id(eqn)] = layer_product(eqn, inside, path, parameter, op)
        products = [known[id(eqn)] for eqn in eqns]
        present = [p for p in products if p is not None]
        return present if len(present) == len(products) else None

    def _meet(self, lanes: Sequence[_Lane], products: Sequence[LayerProduct]) -> list[list[Value]]:
        """Meet a layer at a product and return what that gives in both runs."""
        path, side = products[0].path, products[0].side
        others = [self._resolved([lane.operands[1 - side]])[0] for lane in lanes]

        def computed(lane: _Lane, x: Pair, which: int) -> Any:
            kernel = lane.operands[side]
            assert isinstance(kernel, DeferredParameter)
            operands = [self._parameter(kernel, which), x[which]]
            return bind(lane.eqn, operands if side == 0 else operands[::-1])[0]

        firsts = [computed(lane, x, 0) for lane, x in zip(lanes, others, strict=True)]
        batches = [lane.batch for lane in lanes]
        # Targets are of the original model; inputs are those that the chain will have.
        self.visits.meet(path, products, [x[1] for x in others], firsts, batches)
        outputs: list[list[Value]] = []
        same = self._parameters[path].kernel not in self.visits.new
        for lane, x, first, where in zip(lanes, others, firsts, products, strict=True):
            # The same kernel on the same object needs no second product.
            second = first if same and x[0] is x[1] else computed(lane, x, 1)
            self.visits.measure(where, first, second)
            outputs.append([(first, second if self._sequential else first)])
        return outputs

    def _foresee(self, eqn: JaxprEqn, inside: Inside, sliced: Inside = ()) -> None:
        """Decide on the layers of a loop, but for those of which each turn has its own.

        Args:
            eqn: the loop.
            inside: which of its operands are tracked.
            sliced: those of which each turn is given a slice.
        """
        # With one slice each, `times` says how many turns of this loop use the same kernel.
        labels = [None if v is None else replace(v.label, slices=1) for v in inside]
        leaves = {value.label.leaf for value in sliced if value is not None}
        dataflow = Dataflow()
        step(eqn, labels, 1, dataflow)
        for use in dataflow.uses:
            if use.leaf not in leaves or use.times > 1:
                self._decide(use)

    def _pass_by(self, eqn: JaxprEqn, inside: Inside) -> None:
        """Decide on a layer whose kernel meets its inputs in a way that is not known."""
        use = product(eqn, [label_of(value) for value in inside], 1)
        if use is not None:
            self._decide(use)

    def _decide(self, use: ParameterUse) -> None:
        path = self._paths.get(use.leaf)  # type: ignore[call-overload]  # a leaf is any label
        if path is not None:
            self.visits.decide(path)

    def _scan(self, lanes: Sequence[_Lane], scans: Sequence[flow.Scan]) -> list[list[Value]]:
        """Run one turn after the other, each for all batches."""
        length, reverse = scans[0].length, scans[0].reverse
        bodies, batches = [scan.body for scan in scans], [lane.batch for lane in lanes]
        operands = [scans[0].operands(lane.operands) for lane in lanes]
        states = [start for _, start, _ in operands]
        iterations: list[list[Sequence[Value]]] = []
        for number in reversed(range(length)) if reverse else range(length):
            inputs = [
                [*constants, *state, *(slice_of(value, length, number) for value in stacks)]
                for (constants, _, stacks), state in zip(operands, states, strict=True)
            ]
            split = [scans[0].outputs(o) for o in self._evaluate(bodies, inputs, batches)]
            states = [state for state, _ in split]
            iterations.append([row for _, row in split])
        # Rows lie in the order of the slices, whatever that of the turns was.
        if reverse:
            iterations.reverse()
        outputs: list[list[Value]] = []
        for state, rows in zip(states, zip(*iterations, strict=True), strict=True):
            columns = zip(*rows, strict=True)
            outputs.append([*state, *(stacked(self._resolved(column)) for column in columns)])
        return outputs

    def _while(self, lane: _Lane, loop: flow.While) -> list[Value]:
        """Run turn after turn while both runs go on; then each on its own."""
        test_constants, constants, start = loop.operands(lane.operands)
        state = list(start)
        while True:
            ((going,),) = self._evaluate([loop.test], [[*test_constants, *state]], [lane.batch])
            (pair,) = self._resolved([going])
            if not (bool(pair[0]) and bool(pair[1])):
                break
            (state,) = self._evaluate([loop.body], [[*constants, *state]], [lane.batch])
        if bool(pair[0]) == bool(pair[1]):
            return state
        # One run has ended: the other goes on by itself, this one's test is false at once.
        return both(lane.eqn, self._resolved([*test_constants, *constants, *state]))

    def _taken(
        self, lanes: Sequence[_Lane], conds: Sequence[flow.Cond]
    ) -> list[ClosedJaxpr] | None:
        """Return the branch that both runs of all batches take; None where they part."""
        pairs = self._resolved([lane.operands[0] for lane in lanes])
        taken = {
            int(np.clip(int(which), 0, len(cond.branches) - 1))
            for cond, pair in zip(conds, pairs, strict=True)
            for which in pair
        }
        if len(taken) > 1:
            return None
        (number,) = taken
        bodies = [cond.branches[number] for cond in conds]
        return bodies if len({structure(body.jaxpr) for body in bodies}) == 1 else None
