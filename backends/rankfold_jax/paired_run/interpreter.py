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
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Var

from rankfold.adapters.base import LayerVisitor
from rankfold.calibration.batches import Calibration
from rankfold.ops import Op
from rankfold_jax.calibration.layer_products import LayerProduct, site_of
from rankfold_jax.functional.pure_function import PureModel
from rankfold_jax.jaxpr.control_flow import Call, Cond, Scan, ShardMap, While, control_flow
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


def run_paired(
    flow: PureModel,
    calibration: Calibration,
    layers: Mapping[str, Op],
    visit: LayerVisitor,
    *,
    sequential: bool,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Meets layers as they are called; see `rankfold.adapters.base.Calibrates`.

    Args:
        flow: the model, with a slot for each of the layers.
        calibration: the batches.
        layers: the layers to meet.
        visit: gives the chain of a layer.
        sequential: whether the replacements work on what the replacements before them give.
        rng: draws the sample of positions.
    """
    batches = []
    first = 0
    for program, arrays in flow.programs(calibration.inputs):
        batches.append(Batch(first, program.inputs.examples, program.closed, arrays))
        first += program.inputs.examples
    following = _Following(flow, layers, visit, rng, first, sequential=sequential)
    groups: dict[Any, list[Batch]] = {}
    for batch in batches:
        groups.setdefault(structure(batch.closed.jaxpr), []).append(batch)
    for group in groups.values():
        following.run(group)
    return {path: error.value for path, error in following.meeting.errors.items()}


class _Following:
    def __init__(
        self,
        flow: PureModel,
        layers: Mapping[str, Op],
        visit: LayerVisitor,
        rng: np.random.Generator,
        examples: int,
        *,
        sequential: bool,
    ) -> None:
        self._slots = {path: slot for path, slot in flow.slots.items() if path in layers}
        self._paths = {slot.kernel: path for path, slot in self._slots.items()}
        self._values = flow.values
        self._layers = layers
        self._sequential = sequential
        self.meeting = LayerVisits(self._slots, flow.values, layers, visit, rng, examples)

    def run(self, batches: Sequence[Batch]) -> None:
        """Both runs of batches whose jaxprs have the same structure."""
        lazy = {leaf for slot in self._slots.values() for leaf in (slot.kernel, slot.bias)}
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
        """The outputs of each batch."""
        jaxprs = [body.jaxpr for body in closed]
        envs: list[dict[Var, Value]] = []
        for body, operands in zip(closed, inputs, strict=True):
            env = dict(zip(body.jaxpr.invars, operands, strict=True))
            env.update((v, (c, c)) for v, c in zip(body.jaxpr.constvars, body.consts, strict=True))
            envs.append(env)
        last = [last_reads(jaxpr) for jaxpr in jaxprs]
        for index, eqns in enumerate(zip(*(jaxpr.eqns for jaxpr in jaxprs), strict=True)):
            arguments = [read(env, eqn.invars) for env, eqn in zip(envs, eqns, strict=True)]
            outputs = self._apply(eqns, arguments, batches)
            for env, eqn, results, ends in zip(envs, eqns, outputs, last, strict=True):
                env.update(zip(eqn.outvars, results, strict=True))
                for var in ends.get(index, ()):
                    env.pop(var, None)
        return [read(env, jaxpr.outvars) for env, jaxpr in zip(envs, jaxprs, strict=True)]

    def _apply(
        self,
        eqns: Sequence[JaxprEqn],
        arguments: Sequence[Sequence[Value]],
        batches: Sequence[Batch],
    ) -> list[list[Value]]:
        eqn = eqns[0]
        inside = [
            value.tracked if isinstance(value, DeferredParameter) else None
            for value in arguments[0]
        ]
        if any(value is not None for value in inside):
            outputs = self._controlled(eqns, inside, arguments, batches)
            if outputs is not None:
                return outputs
            if eqn.primitive.name == "optimization_barrier":
                return [list(operands) for operands in arguments]
            moved = [moved_lazily(e, operands) for e, operands in zip(eqns, arguments, strict=True)]
            if all(values is not None for values in moved):
                return [[value] for value in moved if value is not None]
            sites = self._sites(eqns, inside)
            if sites is not None:
                return self._meet(eqns, sites, arguments, batches)
            self._pass_by(eqn, inside)
        return self._both(eqns, arguments)

    def _controlled(
        self,
        eqns: Sequence[JaxprEqn],
        inside: Sequence[IndexedValue | None],
        arguments: Sequence[Sequence[Value]],
        batches: Sequence[Batch],
    ) -> list[list[Value]] | None:
        """Evaluate an equation that runs other jaxprs; None for any other."""
        parts: list[Any] = [control_flow(eqn) for eqn in eqns]
        match parts[0]:
            case Call():
                return self._evaluate([part.body for part in parts], arguments, batches)
            case Scan() as scan if len({turns_of(part) for part in parts}) == 1:
                self._foresee(eqns[0], inside, scan.operands(inside)[2])
                return self._scan(eqns, parts, arguments, batches)
            case Cond():
                taken = self._taken(parts, arguments)
                if taken is not None:
                    return self._evaluate(taken, [operands[1:] for operands in arguments], batches)
            case None | ShardMap():
                return None
        self._foresee(eqns[0], inside)
        if len(eqns) > 1:
            each = zip(eqns, arguments, batches, strict=True)
            return [self._apply([e], [operands], [batch])[0] for e, operands, batch in each]
        if isinstance(parts[0], While):
            return [self._while(eqns[0], parts[0], arguments[0], batches[0])]
        return self._both(eqns, arguments)

    def _both(
        self, eqns: Sequence[JaxprEqn], arguments: Sequence[Sequence[Value]]
    ) -> list[list[Value]]:
        return [
            both(eqn, self._resolved(operands))
            for eqn, operands in zip(eqns, arguments, strict=True)
        ]

    def _resolved(self, values: Sequence[Value]) -> list[Pair]:
        return [
            self._pair(value) if isinstance(value, DeferredParameter) else value for value in values
        ]

    def _pair(self, value: DeferredParameter) -> Pair:
        """What both runs go on with."""
        first = self._parameter(value, 0)
        leaf = value.tracked.label.leaf
        if not self._sequential or leaf not in self.meeting.new:
            return first, first
        return first, self._parameter(value, 1)

    def _parameter(self, value: DeferredParameter, which: int) -> Any:
        """A parameter of the model (0) or of the compressed one (1)."""
        leaf: Any = value.tracked.label.leaf
        first = self._values[leaf]
        return value.of(self.meeting.new.get(leaf, first) if which else first)

    def _sites(
        self, eqns: Sequence[JaxprEqn], inside: list[IndexedValue | None]
    ) -> list[LayerProduct] | None:
        leaves: set[Any] = {value.label.leaf for value in inside if value is not None}
        if len(leaves) != 1 or not leaves <= self._paths.keys():
            return None
        path = self._paths[leaves.pop()]
        known: dict[int, LayerProduct | None] = {}
        for eqn in eqns:
            if id(eqn) not in known:
                slot, op = self._slots[path], self._layers[path]
                known[id(eqn)] = site_of(eqn, inside, path, slot, op)
        sites = [known[id(eqn)] for eqn in eqns]
        present = [site for site in sites if site is not None]
        return present if len(present) == len(sites) else None

    def _meet(
        self,
        eqns: Sequence[JaxprEqn],
        sites: Sequence[LayerProduct],
        arguments: Sequence[Sequence[Value]],
        batches: Sequence[Batch],
    ) -> list[list[Value]]:
        """A product of a layer: what it gives in both runs."""
        path, side = sites[0].path, sites[0].side
        kernels = [operands[side] for operands in arguments]
        others = [self._resolved([operands[1 - side]])[0] for operands in arguments]

        def computed(eqn: JaxprEqn, x: Any, kernel: Any) -> Any:
            return bind(eqn, [kernel, x] if side == 0 else [x, kernel])[0]

        def of(which: int, kernel: Value) -> Any:
            assert isinstance(kernel, DeferredParameter)
            return self._parameter(kernel, which)

        firsts = [
            computed(eqn, x[0], of(0, kernel))
            for eqn, x, kernel in zip(eqns, others, kernels, strict=True)
        ]
        self.meeting.meet(path, sites, [x[1] for x in others], firsts, batches)
        outputs: list[list[Value]] = []
        same = self._slots[path].kernel not in self.meeting.new
        for eqn, x, kernel, first, site in zip(eqns, others, kernels, firsts, sites, strict=True):
            second = first
            if not same or x[0] is not x[1]:
                second = computed(eqn, x[1], of(1, kernel))
            self.meeting.measure(site, first, second)
            outputs.append([(first, second if self._sequential else first)])
        return outputs

    def _foresee(
        self,
        eqn: JaxprEqn,
        inside: Sequence[IndexedValue | None],
        sliced: Sequence[IndexedValue | None] = (),
    ) -> None:
        """Decides on the layers of a loop, but for those of which each turn has its own.

        Args:
            eqn: the loop.
            inside: which of its operands are tracked.
            sliced: those of which each turn is given a slice.
        """
        labels = [None if v is None else replace(v.label, slices=1) for v in inside]
        leaves = {value.label.leaf for value in sliced if value is not None}
        dataflow = Dataflow()
        step(eqn, labels, 1, dataflow)
        for use in dataflow.uses:
            if use.leaf not in leaves or use.times > 1:
                self._decide(use)

    def _pass_by(self, eqn: JaxprEqn, inside: Sequence[IndexedValue | None]) -> None:
        """Decides on a layer whose kernel meets its inputs in a way that is not known."""
        use = product(eqn, [label_of(value) for value in inside], 1)
        if use is not None:
            self._decide(use)

    def _decide(self, use: ParameterUse) -> None:
        path = self._paths.get(use.leaf)  # type: ignore[call-overload]  # a leaf is any label
        if path is not None:
            self.meeting.decide(path)

    def _scan(
        self,
        eqns: Sequence[JaxprEqn],
        scans: Sequence[Scan],
        arguments: Sequence[Sequence[Value]],
        batches: Sequence[Batch],
    ) -> list[list[Value]]:
        """One turn after the other, each for all batches."""
        if not scans[0].length:
            return self._both(eqns, arguments)
        length, reverse = scans[0].length, scans[0].reverse
        operands = [scan.operands(values) for scan, values in zip(scans, arguments, strict=True)]
        states = [start for _, start, _ in operands]
        turns: list[list[Sequence[Value]]] = []
        for turn in reversed(range(length)) if reverse else range(length):
            inputs = [
                [*constants, *state, *(slice_of(value, length, turn) for value in stacks)]
                for (constants, _, stacks), state in zip(operands, states, strict=True)
            ]
            results = self._evaluate([scan.body for scan in scans], inputs, batches)
            split = [scans[0].outputs(values) for values in results]
            states = [state for state, _ in split]
            turns.append([row for _, row in split])
        if reverse:
            turns.reverse()
        outputs: list[list[Value]] = []
        for state, rows in zip(states, zip(*turns, strict=True), strict=True):
            columns = zip(*rows, strict=True)
            outputs.append([*state, *(stacked(self._resolved(column)) for column in columns)])
        return outputs

    def _while(
        self, eqn: JaxprEqn, loop: While, operands: Sequence[Value], batch: Batch
    ) -> list[Value]:
        """Turn after turn while both runs go on; then each on its own."""
        test_constants, constants, start = loop.operands(operands)
        state = list(start)
        while True:
            ((going,),) = self._evaluate([loop.test], [[*test_constants, *state]], [batch])
            (pair,) = self._resolved([going])
            if not (bool(pair[0]) and bool(pair[1])):
                break
            (state,) = self._evaluate([loop.body], [[*constants, *state]], [batch])
        if bool(pair[0]) == bool(pair[1]):
            return state
        return both(eqn, self._resolved([*test_constants, *constants, *state]))

    def _taken(
        self, conds: Sequence[Cond], arguments: Sequence[Sequence[Value]]
    ) -> list[ClosedJaxpr] | None:
        """The branch that both runs of all batches take; None where they part."""
        taken: set[int] = set()
        for cond, operands in zip(conds, arguments, strict=True):
            (pair,) = self._resolved(operands[:1])
            taken |= {int(np.clip(int(which), 0, len(cond.branches) - 1)) for which in pair}
        if len(taken) > 1:
            return None
        (number,) = taken
        bodies = [cond.branches[number] for cond in conds]
        alike = len({structure(body.jaxpr) for body in bodies}) == 1
        return bodies if alike else None
