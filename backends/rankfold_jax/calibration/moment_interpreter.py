"""Moments of layers, summed up while a jaxpr is evaluated under jit.

The jaxpr is evaluated equation by equation with two additions at every product with a layer's
kernel: sums over the rows that the kernel meets, which loops carry along, and a tap on the output.
A tap is the identity on the way forward; on the way back it gives, as the gradient of an array of
zeros, the second moment of the gradients that pass through it. So JAX itself sums the moments of
the gradients up over calls and loops, in O(d²) memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn

from rankfold.calibration.moments import full_gradients, input_form
from rankfold.calibration.patch_sketch import matrix_shape
from rankfold.ops import Embedding, Op
from rankfold_jax.calibration.gradient_moment import gradient_moment_tap
from rankfold_jax.calibration.layer_products import LayerProduct, layer_product, sampled, working
from rankfold_jax.jaxpr import control_flow as flow
from rankfold_jax.jaxpr.dataflow import Dataflow, bind, step
from rankfold_jax.jaxpr.element_index import IndexedValue, label_of, moved_by
from rankfold_jax.layouts.parameter_index import ParameterIndex

Sums: TypeAlias = dict[str, dict[str, jax.Array]]
Inside: TypeAlias = list[IndexedValue | None]
Operand: TypeAlias = tuple[Any, IndexedValue | None]
"""A value, and which of the model's arrays it is if it is tracked."""


@dataclass
class Gatherer:
    """Evaluate a jaxpr and sum up the moments of layers.

    Attributes:
        parameters: of the layers, by path.
        ops: the layers.
        examples: seen in all calibration data.
        key: draws positions.
        taps: zeros by path, whose gradients are the moments of the gradients.
        matrices: by path, the test matrices of the layers with wide patches.
        order: the layers met so far.
    """

    parameters: Mapping[str, ParameterIndex]
    ops: Mapping[str, Op]
    examples: int
    key: jax.Array
    taps: Mapping[str, jax.Array]
    matrices: Mapping[str, jax.Array]
    order: dict[str, None] = field(default_factory=dict)
    _drawn: int = 0

    def run(self, closed: ClosedJaxpr, values: Sequence[Any]) -> tuple[list[Any], Sums]:
        """Return the outputs of a jaxpr, and the sums by layer.

        Args:
            closed: its first inputs are the model's arrays.
            values: all of its inputs.
        """
        operands: list[Operand] = [_untracked(value) for value in values]
        for parameter in self.parameters.values():
            whole = IndexedValue.whole(parameter.kernel, parameter.shape)
            operands[parameter.kernel] = values[parameter.kernel], whole
        self._paths = {parameter.kernel: path for path, parameter in self.parameters.items()}
        sums = {path: empty_sums(op) for path, op in self.ops.items()}
        outputs, sums = self._evaluate(closed, operands, sums)
        return _values(outputs), sums

    def _evaluate(
        self, closed: ClosedJaxpr, operands: Sequence[Operand], sums: Sums
    ) -> tuple[list[Operand], Sums]:
        def step(eqn: JaxprEqn, inputs: list[Operand]) -> list[Operand]:
            nonlocal sums
            outputs, sums = self._apply(eqn, inputs, sums)
            return outputs

        return flow.evaluated(closed, operands, step, _untracked), sums

    def _apply(
        self, eqn: JaxprEqn, operands: list[Operand], sums: Sums
    ) -> tuple[list[Operand], Sums]:
        arguments, inside = _values(operands), [tracked for _, tracked in operands]
        # Whatever meets no kernel runs as it is, with its own rules of differentiation.
        if all(tracked is None for tracked in inside):
            return [_untracked(value) for value in bind(eqn, arguments)], sums
        match flow.split(eqn):
            case flow.Scan() as scan:
                return self._scan(scan, operands, _unchanged_carry(eqn, scan, operands), sums)
            case flow.While() as loop:
                return self._while(loop, operands, _unchanged_carry(eqn, loop, operands), sums)
            case flow.Cond(branches):
                return self._cond(branches, operands, sums)
            case flow.Call(body):
                return self._evaluate(body, operands, sums)
        outputs = bind(eqn, arguments)
        if eqn.primitive.name == "optimization_barrier":
            return list(zip(outputs, inside, strict=True)), sums
        moved = moved_by(eqn, inside, arguments)
        product = self._product(eqn, inside) if moved is None else None
        if product is not None:
            outputs, sums = self._summed(product, arguments, outputs, sums)
        return [(value, moved) for value in outputs], sums

    def _product(self, eqn: JaxprEqn, inside: Inside) -> LayerProduct | None:
        leaves: set[Any] = {value.label.leaf for value in inside if value is not None}
        paths = [self._paths[leaf] for leaf in leaves if leaf in self._paths]
        if len(paths) != 1:
            return None
        return layer_product(eqn, inside, paths[0], self.parameters[paths[0]], self.ops[paths[0]])

    def _summed(
        self, product: LayerProduct, arguments: list[Any], outputs: list[Any], sums: Sums
    ) -> tuple[list[Any], Sums]:
        path, op = product.path, self.ops[product.path]
        self.order[path] = None
        # Drawn anew at each product, but alike in all turns of a loop, which is traced once.
        self._drawn += 1
        # The sums are no part of the loss.
        x = lax.stop_gradient(arguments[1] if product.side == 0 else arguments[0])
        key = jax.random.fold_in(self.key, self._drawn)
        groups = product.groups()
        matrix = self.matrices[path][groups] if path in self.matrices else None
        terms = _terms(product, op, x, self.examples, key, matrix)
        layer_sums = {
            name: total.at[groups].add(terms[name]) if total.ndim else total + terms[name]
            for name, total in sums[path].items()
        }
        gram = partial(_gram_of, product, full_gradients(op))
        tapped = gradient_moment_tap(gram, outputs[0], self.taps[path], groups)
        return [tapped], {**sums, path: layer_sums}

    def _carried(self, operands: Sequence[Operand], sums: Sums) -> Sums:
        """Select the sums of the layers whose kernels go into a loop: it carries no others."""
        leaves = {tracked.label.leaf for _, tracked in operands if tracked is not None}
        return {path: sums[path] for path in sums if self.parameters[path].kernel in leaves}

    def _scan(
        self, scan: flow.Scan, operands: Sequence[Operand], carried: Inside, sums: Sums
    ) -> tuple[list[Operand], Sums]:
        constants, start, stacked = scan.operands(operands)

        def iteration(carry: Any, xs: Any) -> Any:
            state, inner_sums = carry
            counter, slices = xs
            # Which slice is tracked follows from the counter, which moves only here.
            cut = [None if t is None else t.sliced(scan.length, counter) for _, t in stacked]
            tracked = [*zip(state, carried, strict=True), *zip(slices, cut, strict=True)]
            outputs, inner_sums = self._evaluate(scan.body, [*constants, *tracked], inner_sums)
            after, rows = scan.outputs(_values(outputs))
            return (after, inner_sums), rows

        (state, inner_sums), rows = lax.scan(
            iteration,
            (_values(start), self._carried(operands, sums)),
            (jnp.arange(scan.length), _values(stacked)),
            length=scan.length,
            reverse=scan.reverse,
        )
        outputs = [*zip(state, carried, strict=True), *map(_untracked, rows)]
        return outputs, {**sums, **inner_sums}

    def _while(
        self, loop: flow.While, operands: Sequence[Operand], carried: Inside, sums: Sums
    ) -> tuple[list[Operand], Sums]:
        test_constants, constants, start = loop.operands(operands)

        def tested(state: Any, inner_sums: Sums) -> Any:
            inputs = [*test_constants, *zip(state, carried, strict=True)]
            ((going, _),), inner_sums = self._evaluate(loop.test, inputs, inner_sums)
            return state, going, inner_sums

        def again(carry: Any) -> Any:
            state, _, inner_sums = carry
            inputs = [*constants, *zip(state, carried, strict=True)]
            outputs, inner_sums = self._evaluate(loop.body, inputs, inner_sums)
            return tested(_values(outputs), inner_sums)

        # The test runs at the end of a turn, as only there it can add to the sums.
        begun = tested(_values(start), self._carried(operands, sums))
        state, _, inner_sums = lax.while_loop(lambda carry: carry[1], again, begun)
        return list(zip(state, carried, strict=True)), {**sums, **inner_sums}

    def _cond(
        self, branches: Sequence[ClosedJaxpr], operands: Sequence[Operand], sums: Sums
    ) -> tuple[list[Operand], Sums]:
        (index, _), *rest = operands
        inside = [tracked for _, tracked in rest]

        def run(branch: ClosedJaxpr, inner_sums: Sums, *values: Any) -> Any:
            inputs = list(zip(values, inside, strict=True))
            outputs, inner_sums = self._evaluate(branch, inputs, inner_sums)
            return _values(outputs), inner_sums

        runs = [partial(run, branch) for branch in branches]
        values, inner_sums = lax.switch(index, runs, self._carried(operands, sums), *_values(rest))
        return [_untracked(value) for value in values], {**sums, **inner_sums}


def _values(operands: Sequence[Operand]) -> list[Any]:
    """Return the values, without what is known of them."""
    return [value for value, _ in operands]


def _untracked(value: Any) -> Operand:
    return value, None


def _unchanged_carry(
    eqn: JaxprEqn, loop: flow.Scan | flow.While, operands: Sequence[Operand]
) -> Inside:
    """Return what a loop carries unchanged, of what it begins with."""
    labels = step(eqn, [label_of(tracked) for _, tracked in operands], 1, Dataflow())
    return [
        tracked if label is not None else None
        for (_, tracked), label in zip(loop.start(operands), labels, strict=False)
    ]


def empty_sums(op: Op) -> dict[str, jax.Array]:
    """Return the sums of a layer before anything is added."""
    if isinstance(op, Embedding):
        shape: tuple[int, ...] = (1, len(op.weight))
        inputs, mean = shape, shape
    else:
        mean = (op.groups, op.weight[0].size)
        inputs = mean if input_form(op) == "diagonal" else (*mean, mean[1])
    # "bad" counts input values that are not finite.
    shapes = {"inputs": inputs, "mean": mean, "rows": (op.groups,), "positions": (op.groups,)}
    if input_form(op) == "separable":
        taps = op.weight[0, 0].size
        shapes["inputs"], shapes["squares"] = matrix_shape(op), mean
        shapes["taps"] = (op.groups, taps, taps)
    return {**{name: jnp.zeros(shape) for name, shape in shapes.items()}, "bad": jnp.zeros(())}


def empty_moment_tap(op: Op) -> jax.Array:
    """Return zeros in the shape of the moment of a layer's gradients."""
    out = op.weight.shape[1] if isinstance(op, Embedding) else len(op.weight) // op.groups
    return jnp.zeros((op.groups, out, out) if full_gradients(op) else (op.groups, out))


def _terms(
    product: LayerProduct,
    op: Op,
    x: jax.Array,
    examples: int,
    key: jax.Array,
    matrix: jax.Array | None,
) -> dict[str, jax.Array]:
    """Return what one product adds to the sums of its layer."""
    view, here = product.view, len(product.layout.rows)
    positions = jnp.full(here, float(view.images * view.positions))
    if isinstance(op, Embedding):
        rows = len(op.weight)
        counts = jnp.zeros((1, rows)).at[0, view.rows(x, None)].add(1.0, mode="drop")
        return {
            "inputs": counts,
            "mean": counts,
            "rows": positions,
            "positions": positions,
            "bad": jnp.zeros(()),
        }
    wanted = sampled(view, op, examples)
    chosen = None
    if wanted is not None:
        chance = jax.random.uniform(key, (view.images, view.positions))
        chosen = lax.top_k(chance, wanted)[1]
    patches = product.rows(x, chosen)
    return {
        **_sums_of(op, patches, matrix),
        "mean": patches.sum(0),
        "rows": jnp.full(here, float(len(patches))),
        "positions": positions,
        "bad": jnp.sum(~jnp.isfinite(x)).astype(jnp.float32),
    }


def _sums_of(op: Op, patches: jax.Array, matrix: jax.Array | None) -> dict[str, jax.Array]:
    """Return the second moments over patches (rows, groups, d) that the form of a layer has."""
    if matrix is None:
        diagonal = input_form(op) == "diagonal"
        return {"inputs": jnp.square(patches).sum(0) if diagonal else gram(patches, patches)}
    taken = jnp.einsum("ngd,gdk->ngk", patches, matrix, precision=lax.Precision.HIGHEST)
    # One row for each channel of a patch, over the positions of the kernel.
    split = patches.reshape(*patches.shape[:2], op.weight.shape[1], -1)
    beside = jnp.moveaxis(split, 2, 1).reshape(-1, split.shape[1], split.shape[3])
    return {
        "inputs": gram(patches, taken),
        "squares": jnp.square(patches).sum(0),
        "taps": gram(beside, beside) / split.shape[2],
    }


def gram(a: jax.Array, b: jax.Array) -> jax.Array:
    """Compute Σ a bᵀ over rows: (groups, a, b) of (rows, groups, a) and (rows, groups, b)."""
    return jnp.einsum("nga,ngb->gab", a, b, precision=lax.Precision.HIGHEST)


def _gram_of(product: LayerProduct, full: bool, gradient: jax.Array) -> jax.Array:
    rows = working(product.outputs(gradient, None))
    return gram(rows, rows) if full else jnp.square(rows).sum(0)
