"""Second moments of what parameter leaves are multiplied with, gathered while a function runs.

The jaxpr of the function is evaluated equation by equation, under jit as well, with one addition:
at every product with a labelled leaf the Gram of the other operand is taken. Grams leave a scan as
stacked outputs, a while loop in its carry, a cond from every branch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from rankfold.errors import RankfoldError
from rankfold_jax.jaxprs import Found, bind, called, step, traced
from rankfold_jax.labels import Label, Leaf, param, shape_of, sliced_by_scan
from rankfold_jax.products import product

Sums: TypeAlias = dict[Leaf, jax.Array]
Labels: TypeAlias = Sequence[Label | None]


def second_moments(
    function: Callable[..., Any], params: Any, leaves: Sequence[Leaf | None], *inputs: Any
) -> tuple[Any, Sums]:
    """Runs a function and gathers Σ x xᵀ over the inputs x of every product with a leaf.

    Args:
        function: of (params, *inputs); may be called under jit.
        params: a pytree of arrays.
        leaves: a label for each leaf of params, in the order of `jax.tree.leaves`; None where
            nothing is gathered. Leaves with the same label are summed up.
        inputs: pytrees of arrays.

    Returns:
        What the function gives, and float32 sums by label, not divided by the number of
        positions. A matrix (in, out) has (in, in). A convolution has
        (groups, d, d) with d = in/groups · positions of its kernel, channels first, the unfolding
        of its patches. A leaf that is a stack, used slice by slice or under vmap, has the stack
        before these axes.

    Raises:
        RankfoldError: this version of JAX writes its jaxprs in another way.
    """
    closed, tree = traced(function, params, *inputs)
    labels: list[Label | None] = [
        None if leaf is None else Label(leaf, axes=tuple(range(len(shape_of(var)))))
        for leaf, var in zip(leaves, closed.jaxpr.invars, strict=False)
    ]
    values = [*jax.tree.leaves(params), *jax.tree.leaves(inputs)]
    labels += [None] * (len(values) - len(labels))
    outputs, _, sums = _evaluate(closed.jaxpr, closed.consts, values, labels)
    return jax.tree.unflatten(tree, outputs), sums


def _evaluate(
    jaxpr: Jaxpr, consts: Sequence[Any], values: Sequence[Any], labels: Labels
) -> tuple[list[Any], list[Label | None], Sums]:
    env: dict[Var, Any] = {}
    known: dict[Var, Label] = {}
    sums: Sums = {}

    def read(var: Any) -> Any:
        return var.val if isinstance(var, Literal) else env[var]

    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, values, strict=True))
    known.update((v, x) for v, x in zip(jaxpr.invars, labels, strict=True) if x is not None)
    for eqn in jaxpr.eqns:
        arguments = [read(var) for var in eqn.invars]
        inside = [None if isinstance(v, Literal) else known.get(v) for v in eqn.invars]
        outputs, after, gathered = _apply(eqn, arguments, inside)
        _add(sums, gathered)
        for var, value, label in zip(eqn.outvars, outputs, after, strict=True):
            env[var] = value
            if label is not None:
                known[var] = label
    out_labels = [None if isinstance(v, Literal) else known.get(v) for v in jaxpr.outvars]
    return [read(var) for var in jaxpr.outvars], out_labels, sums


def _apply(
    eqn: JaxprEqn, arguments: list[Any], labels: list[Label | None]
) -> tuple[Sequence[Any], list[Label | None], Sums]:
    nothing: list[Label | None] = [None] * len(eqn.outvars)
    if all(label is None for label in labels):
        return bind(eqn, arguments), nothing, {}
    name = eqn.primitive.name
    if name == "scan":
        return _scan(eqn, arguments, labels)
    if name == "while":
        return _while(eqn, arguments, labels)
    if name == "cond":
        return _cond(eqn, arguments, labels)
    inner = called(eqn)
    if inner is not None:
        return _evaluate(inner.jaxpr, inner.consts, arguments, labels)
    after = step(eqn, labels, 1, Found())
    outputs = bind(eqn, arguments)
    if product(eqn, labels, 1) is None:
        return outputs, after, {}
    side = 0 if labels[0] is not None else 1
    label = labels[side]
    assert label is not None
    gather = _dense_gram if name == "dot_general" else _patch_gram
    return outputs, after, {label.leaf: gather(eqn, arguments[1 - side], side)}


def _dense_gram(eqn: JaxprEqn, x: jax.Array, side: int) -> jax.Array:
    """(*batch, d, d) with the contracted axes in the order they have in the leaf."""
    (contract, batch) = param(eqn, "dimension_numbers")
    order = sorted(range(len(contract[side])), key=lambda i: contract[side][i])
    contracted = [contract[1 - side][i] for i in order]
    stacked = sorted(range(len(batch[side])), key=lambda i: batch[side][i])
    leading = [batch[1 - side][i] for i in stacked]
    rest = [axis for axis in range(x.ndim) if axis not in (*contracted, *leading)]
    x = jnp.transpose(x, (*leading, *rest, *contracted)).astype(jnp.float32)
    shape = x.shape[: len(leading)]
    x = x.reshape(*shape, -1, math.prod(x.shape[len(leading) + len(rest) :]))
    return _gram(x)


def _patch_gram(eqn: JaxprEqn, x: jax.Array, side: int) -> jax.Array:
    """(groups, d, d) of the patches that a kernel meets."""
    del side  # a kernel is always the right operand
    spec = param(eqn, "dimension_numbers")
    weight = shape_of(eqn.invars[1])
    groups = param(eqn, "feature_group_count")
    patches = lax.conv_general_dilated_patches(
        x.astype(jnp.float32),
        [weight[axis] for axis in spec.rhs_spec[2:]],
        param(eqn, "window_strides"),
        param(eqn, "padding"),
        lhs_dilation=param(eqn, "lhs_dilation"),
        rhs_dilation=param(eqn, "rhs_dilation"),
        dimension_numbers=spec,
        precision=lax.Precision.HIGHEST,
    )
    channels = jnp.moveaxis(patches, spec.out_spec[1], 0)
    return _gram(channels.reshape(groups, channels.shape[0] // groups, -1).swapaxes(1, 2))


def _gram(x: jax.Array) -> jax.Array:
    return jnp.einsum("...nd,...ne->...de", x, x, precision=lax.Precision.HIGHEST)


def _scan(
    eqn: JaxprEqn, arguments: list[Any], labels: list[Label | None]
) -> tuple[Sequence[Any], list[Label | None], Sums]:
    consts, carried = param(eqn, "num_consts"), param(eqn, "num_carry")
    body = param(eqn, "jaxpr")
    ends = consts + carried
    held = _settled(eqn, labels)
    sliced = {label.leaf for label in labels[ends:] if label is not None}
    inside = [*labels[:consts], *held, *sliced_by_scan(labels[ends:], param(eqn, "length"))]

    def one(carry: Any, xs: Any) -> Any:
        values = [*arguments[:consts], *carry, *xs]
        outputs, _, sums = _evaluate(body.jaxpr, body.consts, values, inside)
        return outputs[:carried], (outputs[carried:], sums)

    carry, (stacked, sums) = lax.scan(
        one,
        list(arguments[consts:ends]),
        list(arguments[ends:]),
        length=param(eqn, "length"),
        reverse=param(eqn, "reverse"),
    )
    total = {leaf: s if leaf in sliced else s.sum(axis=0) for leaf, s in sums.items()}
    return [*carry, *stacked], [*held, *(None for _ in stacked)], total


def _while(
    eqn: JaxprEqn, arguments: list[Any], labels: list[Label | None]
) -> tuple[Sequence[Any], list[Label | None], Sums]:
    tests, consts = param(eqn, "cond_nconsts"), param(eqn, "body_nconsts")
    test, body = param(eqn, "cond_jaxpr"), param(eqn, "body_jaxpr")
    ends = tests + consts
    held = _settled(eqn, labels)
    inside = [*labels[tests:ends], *held]

    def once(carry: Sequence[Any]) -> tuple[list[Any], Sums]:
        values = [*arguments[tests:ends], *carry]
        outputs, _, sums = _evaluate(body.jaxpr, body.consts, values, inside)
        return outputs, sums

    def going(state: Any) -> Any:
        values = [*arguments[:tests], *state[0]]
        return _evaluate(test.jaxpr, test.consts, values, [None] * len(values))[0][0]

    def again(state: Any) -> Any:
        outputs, sums = once(state[0])
        return outputs, {leaf: state[1][leaf] + sums[leaf] for leaf in sums}

    start = list(arguments[ends:])
    outputs, sums = lax.while_loop(going, again, (start, _zeros(jax.eval_shape(once, start)[1])))
    return outputs, held, sums


def _cond(
    eqn: JaxprEqn, arguments: list[Any], labels: list[Label | None]
) -> tuple[Sequence[Any], list[Label | None], Sums]:
    branches = param(eqn, "branches")
    index, *operands = arguments

    def branch_of(branch: Any) -> Callable[..., tuple[list[Any], Sums]]:
        def run(*values: Any) -> tuple[list[Any], Sums]:
            outputs, _, sums = _evaluate(branch.jaxpr, branch.consts, values, labels[1:])
            return outputs, sums

        return run

    runs = [branch_of(branch) for branch in branches]
    every: dict[Leaf, Any] = {}
    for run in runs:
        every.update(jax.eval_shape(run, *operands)[1])

    def padded(run: Callable[..., tuple[list[Any], Sums]]) -> Callable[..., Any]:
        def padded_run(*values: Any) -> Any:
            outputs, sums = run(*values)
            return outputs, {**_zeros(every), **sums}

        return padded_run

    outputs, sums = lax.switch(index, [padded(run) for run in runs], *operands)
    return outputs, step(eqn, labels, 1, Found()), sums


def _settled(eqn: JaxprEqn, labels: list[Label | None]) -> list[Label | None]:
    carried = step(eqn, labels, 1, Found())
    if eqn.primitive.name == "while":
        return carried
    return carried[: param(eqn, "num_carry")]


def _zeros(shapes: Mapping[Leaf, Any]) -> Sums:
    return {leaf: jnp.zeros(shape.shape, shape.dtype) for leaf, shape in shapes.items()}


def _add(sums: Sums, gathered: Mapping[Leaf, jax.Array]) -> None:
    for leaf, value in gathered.items():
        if leaf in sums and sums[leaf].shape != value.shape:
            raise RankfoldError(
                f"layer {leaf!r} is used with inputs of {sums[leaf].shape[-1]} and "
                f"{value.shape[-1]} features; gather its moments separately"
            )
        sums[leaf] = sums[leaf] + value if leaf in sums else value
