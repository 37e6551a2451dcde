"""Moments of layers, summed up while a jaxpr is evaluated under jit.

The jaxpr is evaluated equation by equation with two additions at every product with a layer's
kernel: sums over the rows that the kernel meets, which loops carry along, and a tap on the output.
A tap is the identity on the way forward; on the way back it gives, as the gradient of an array of
zeros, the second moment of the gradients that pass through it. So JAX itself sums the moments of
the gradients up over calls and loops, in O(d²) memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from rankfold.calibration.moments import full_gradients, input_form
from rankfold.ops import Embedding, Op
from rankfold_jax.calibration.gradient_moment import gradient_moment_tap
from rankfold_jax.calibration.layer_products import LayerProduct, sampled, site_of, working
from rankfold_jax.jaxpr.dataflow import Dataflow, bind, called, step
from rankfold_jax.jaxpr.element_index import IndexedValue, label_of, moved_by
from rankfold_jax.jaxpr.provenance import param
from rankfold_jax.layouts.parameter_index import ParameterIndex

Sums: TypeAlias = dict[str, dict[str, jax.Array]]
Inside: TypeAlias = list[IndexedValue | None]


@dataclass
class Gatherer:
    """Evaluates a jaxpr and sums up the moments of layers.

    Attributes:
        slots: of the layers, by path.
        ops: the layers.
        examples: seen in all calibration data.
        key: draws positions.
        taps: zeros by path, whose gradients are the moments of the gradients.
        order: the layers met so far.
    """

    slots: Mapping[str, ParameterIndex]
    ops: Mapping[str, Op]
    examples: int
    key: jax.Array
    taps: Mapping[str, jax.Array]
    order: dict[str, None] = field(default_factory=dict)
    _drawn: int = 0

    def run(self, closed: ClosedJaxpr, values: Sequence[Any]) -> tuple[list[Any], Sums]:
        """The outputs of a jaxpr, and the sums by layer.

        Args:
            closed: its first inputs are the model's arrays.
            values: all of its inputs.
        """
        inside: Inside = [None] * len(values)
        for slot in self.slots.values():
            inside[slot.kernel] = IndexedValue.whole(slot.kernel, slot.shape)
        self._paths = {slot.kernel: path for path, slot in self.slots.items()}
        sums = {path: empty_sums(op) for path, op in self.ops.items()}
        outputs, _, sums = self._evaluate(closed.jaxpr, closed.consts, values, inside, sums)
        return outputs, sums

    def _evaluate(
        self, jaxpr: Jaxpr, consts: Sequence[Any], values: Sequence[Any], inside: Inside, sums: Sums
    ) -> tuple[list[Any], Inside, Sums]:
        env: dict[Var, Any] = {}
        known: dict[Var, IndexedValue] = {}

        def read(var: Any) -> Any:
            return var.val if isinstance(var, Literal) else env[var]

        def tracked(variables: Sequence[Any]) -> Inside:
            return [None if isinstance(v, Literal) else known.get(v) for v in variables]

        env.update(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, values, strict=True))
        known.update((v, t) for v, t in zip(jaxpr.invars, inside, strict=True) if t is not None)
        for eqn in jaxpr.eqns:
            arguments = [read(var) for var in eqn.invars]
            outputs, after, sums = self._apply(eqn, arguments, tracked(eqn.invars), sums)
            for var, value, label in zip(eqn.outvars, outputs, after, strict=True):
                env[var] = value
                if label is not None:
                    known[var] = label
        return [read(var) for var in jaxpr.outvars], tracked(jaxpr.outvars), sums

    def _apply(
        self, eqn: JaxprEqn, arguments: list[Any], inside: Inside, sums: Sums
    ) -> tuple[list[Any], Inside, Sums]:
        nothing: Inside = [None] * len(eqn.outvars)
        if all(value is None for value in inside):
            return bind(eqn, arguments), nothing, sums
        loop = {"scan": self._scan, "while": self._while, "cond": self._cond}
        if eqn.primitive.name in loop:
            return loop[eqn.primitive.name](eqn, arguments, inside, sums)
        inner = called(eqn)
        if inner is not None:
            return self._evaluate(inner.jaxpr, inner.consts, arguments, inside, sums)
        outputs = bind(eqn, arguments)
        if eqn.primitive.name == "optimization_barrier":
            return outputs, list(inside), sums
        moved = moved_by(eqn, inside, arguments)
        if moved is not None:
            return outputs, [moved] * len(eqn.outvars), sums
        site = self._site(eqn, inside)
        if site is not None:
            outputs, sums = self._met(site, arguments, outputs, sums)
        return outputs, nothing, sums

    def _site(self, eqn: JaxprEqn, inside: Inside) -> LayerProduct | None:
        leaves: set[Any] = {value.label.leaf for value in inside if value is not None}
        paths = [self._paths[leaf] for leaf in leaves if leaf in self._paths]
        if len(paths) != 1:
            return None
        return site_of(eqn, inside, paths[0], self.slots[paths[0]], self.ops[paths[0]])

    def _met(
        self, site: LayerProduct, arguments: list[Any], outputs: list[Any], sums: Sums
    ) -> tuple[list[Any], Sums]:
        path, op = site.path, self.ops[site.path]
        self.order[path] = None
        self._drawn += 1
        x = lax.stop_gradient(arguments[1] if site.side == 0 else arguments[0])
        key = jax.random.fold_in(self.key, self._drawn)
        groups = site.groups()
        terms = _terms(site, op, x, self.examples, key)
        layer_sums = {
            name: total.at[groups].add(terms[name]) if total.ndim else total + terms[name]
            for name, total in sums[path].items()
        }
        gram = partial(_gram_of, site, full_gradients(op))
        tapped = gradient_moment_tap(gram, outputs[0], self.taps[path], groups)
        return [tapped], {**sums, path: layer_sums}

    def _carried(self, inside: Inside, sums: Sums) -> Sums:
        """The sums of the layers whose kernels go into a loop."""
        leaves = {value.label.leaf for value in inside if value is not None}
        return {path: sums[path] for path in sums if self.slots[path].kernel in leaves}

    def _scan(
        self, eqn: JaxprEqn, arguments: list[Any], inside: Inside, sums: Sums
    ) -> tuple[list[Any], Inside, Sums]:
        consts, carried = param(eqn, "num_consts"), param(eqn, "num_carry")
        body, length = param(eqn, "jaxpr"), param(eqn, "length")
        ends = consts + carried
        held = _settled(eqn, inside, inside[consts:ends])

        def turn(carry: Any, xs: Any) -> Any:
            state, inner_sums = carry
            counter, slices = xs
            cut = [None if t is None else t.sliced(length, counter) for t in inside[ends:]]
            outputs, _, inner_sums = self._evaluate(
                body.jaxpr,
                body.consts,
                [*arguments[:consts], *state, *slices],
                [*inside[:consts], *held, *cut],
                inner_sums,
            )
            return (outputs[:carried], inner_sums), outputs[carried:]

        (state, inner_sums), stacked = lax.scan(
            turn,
            (list(arguments[consts:ends]), self._carried(inside, sums)),
            (jnp.arange(length), list(arguments[ends:])),
            length=length,
            reverse=param(eqn, "reverse"),
        )
        return [*state, *stacked], [*held, *(None for _ in stacked)], {**sums, **inner_sums}

    def _while(
        self, eqn: JaxprEqn, arguments: list[Any], inside: Inside, sums: Sums
    ) -> tuple[list[Any], Inside, Sums]:
        tests, consts = param(eqn, "cond_nconsts"), param(eqn, "body_nconsts")
        test, body = param(eqn, "cond_jaxpr"), param(eqn, "body_jaxpr")
        ends = tests + consts
        held = _settled(eqn, inside, inside[ends:])

        def going(state: Any) -> Any:
            values = [*arguments[:tests], *state[0]]
            return self._evaluate(test.jaxpr, test.consts, values, [None] * len(values), {})[0][0]

        def again(state: Any) -> Any:
            values = [*arguments[tests:ends], *state[0]]
            known = [*inside[tests:ends], *held]
            outputs, _, inner_sums = self._evaluate(
                body.jaxpr, body.consts, values, known, state[1]
            )
            return outputs, inner_sums

        start = (list(arguments[ends:]), self._carried(inside, sums))
        outputs, inner_sums = lax.while_loop(going, again, start)
        return outputs, held, {**sums, **inner_sums}

    def _cond(
        self, eqn: JaxprEqn, arguments: list[Any], inside: Inside, sums: Sums
    ) -> tuple[list[Any], Inside, Sums]:
        def branch_of(branch: Any) -> Callable[..., Any]:
            def run(inner_sums: Sums, *values: Any) -> Any:
                outputs, _, inner_sums = self._evaluate(
                    branch.jaxpr, branch.consts, values, inside[1:], inner_sums
                )
                return outputs, inner_sums

            return run

        index, *operands = arguments
        branches = [branch_of(branch) for branch in param(eqn, "branches")]
        outputs, inner_sums = lax.switch(index, branches, self._carried(inside, sums), *operands)
        return outputs, [None] * len(outputs), {**sums, **inner_sums}


def _settled(eqn: JaxprEqn, inside: Inside, carry: Inside) -> Inside:
    """What a loop carries unchanged, of what it begins with."""
    labels = step(eqn, [label_of(value) for value in inside], 1, Dataflow())
    return [
        value if label is not None else None for value, label in zip(carry, labels, strict=False)
    ]


def empty_sums(op: Op) -> dict[str, jax.Array]:
    """The sums of a layer before anything is added."""
    if isinstance(op, Embedding):
        shape: tuple[int, ...] = (1, len(op.weight))
        inputs, mean = shape, shape
    else:
        form = input_form(op)
        width = op.weight.shape[1] if form == "channels" else op.weight[0].size
        mean = (op.groups, width)
        inputs = mean if form == "diagonal" else (*mean, width)
    shapes = {"inputs": inputs, "mean": mean, "rows": (op.groups,), "positions": (op.groups,)}
    return {**{name: jnp.zeros(shape) for name, shape in shapes.items()}, "bad": jnp.zeros(())}


def empty_moment_tap(op: Op) -> jax.Array:
    """Zeros in the shape of the moment of a layer's gradients."""
    out = op.weight.shape[1] if isinstance(op, Embedding) else len(op.weight) // op.groups
    return jnp.zeros((op.groups, out, out) if full_gradients(op) else (op.groups, out))


def _terms(
    site: LayerProduct, op: Op, x: jax.Array, examples: int, key: jax.Array
) -> dict[str, jax.Array]:
    """What one product adds to the sums of its layer."""
    view, here = site.view, len(site.layout.rows)
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
    form = input_form(op)
    taps = op.weight[0, 0].size if form == "channels" else 1
    wanted = sampled(view, op, examples, taps)
    chosen = None
    if wanted is not None:
        chance = jax.random.uniform(key, (view.images, view.positions))
        chosen = lax.top_k(chance, wanted)[1]
    patches = site.rows(x, chosen)
    if form == "channels":
        split = patches.reshape(len(patches), here, -1, taps)
        patches = jnp.moveaxis(split, 3, 1).reshape(-1, here, split.shape[2])
    return {
        "inputs": jnp.square(patches).sum(0) if form == "diagonal" else gram(patches, patches),
        "mean": patches.sum(0),
        "rows": jnp.full(here, float(len(patches))),
        "positions": positions,
        "bad": jnp.sum(~jnp.isfinite(x)).astype(jnp.float32),
    }


def gram(a: jax.Array, b: jax.Array) -> jax.Array:
    """Σ a bᵀ over rows: (groups, a, b) of (rows, groups, a) and (rows, groups, b)."""
    return jnp.einsum("nga,ngb->gab", a, b, precision=lax.Precision.HIGHEST)


def _gram_of(site: LayerProduct, full: bool, gradient: jax.Array) -> jax.Array:
    rows = working(site.outputs(gradient, None))
    return gram(rows, rows) if full else jnp.square(rows).sum(0)
