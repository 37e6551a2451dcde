"""What a jaxpr does with the leaves of its parameters: who multiplies with them, at which sizes.

A function is traced to a jaxpr without computing anything. Its parameter leaves are labelled, and
the labels are followed through everything that only moves numbers about (reshapes, transpositions,
casts, slices of a stack) into nested jit, scan, while, cond, remat, custom_jvp and custom_vjp.
Every dot_general, conv_general_dilated and look-up with a labelled operand is a `ParameterUse`;
whatever else meets a labelled value is a `Read`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from rankfold_jax.jaxpr.parameter_uses import ParameterUse, look_up, product
from rankfold_jax.jaxpr.provenance import Leaf, Provenance, moved, param, shape_of, sliced_by_scan


@dataclass(frozen=True)
class Read:
    """Anything else that is done with a parameter leaf: the primitive it goes into."""

    leaf: Leaf
    primitive: str


@dataclass
class Dataflow:
    """What was found in a jaxpr, in its order."""

    uses: list[ParameterUse] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)

    def of(self, leaf: Leaf) -> list[ParameterUse]:
        """The uses of one leaf."""
        return [use for use in self.uses if use.leaf == leaf]


def traced(function: Callable[..., Any], params: Any, *inputs: Any) -> tuple[ClosedJaxpr, Any]:
    """The jaxpr of a function of (params, *inputs), and the tree of its output.

    Args:
        function: traced, not run.
        params: a pytree of arrays or of `jax.ShapeDtypeStruct`; its leaves come first among the
            jaxpr's inputs, in the order of `jax.tree.leaves`.
        inputs: pytrees of the same.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(params, *inputs)
    return closed, jax.tree.structure(shapes)


def find(closed: ClosedJaxpr, leaves: Sequence[Leaf | None]) -> Dataflow:
    """Follows labelled inputs through a jaxpr.

    Args:
        closed: as `traced` gives it.
        leaves: a label for each of the jaxpr's first inputs; None for one that is not followed.

    Raises:
        RankfoldError: this version of JAX writes its jaxprs in another way.
    """
    dataflow = Dataflow()
    labels = [
        None if leaf is None else Provenance(leaf, axes=tuple(range(len(shape_of(var)))))
        for leaf, var in zip(leaves, closed.jaxpr.invars, strict=False)
    ]
    labels += [None] * (len(closed.jaxpr.invars) - len(labels))
    _walk(closed.jaxpr, labels, 1, dataflow)
    return dataflow


def _walk(
    jaxpr: Jaxpr, labels: Sequence[Provenance | None], repeats: int, dataflow: Dataflow
) -> list[Provenance | None]:
    """Goes through the equations; gives the labels of the outputs."""
    known: dict[Var, Provenance] = {
        var: label for var, label in zip(jaxpr.invars, labels, strict=True) if label is not None
    }
    for eqn in jaxpr.eqns:
        inside = [None if isinstance(v, Literal) else known.get(v) for v in eqn.invars]
        if all(label is None for label in inside):
            continue
        for var, label in zip(eqn.outvars, step(eqn, inside, repeats, dataflow), strict=True):
            if label is not None:
                known[var] = label
    return [None if isinstance(v, Literal) else known.get(v) for v in jaxpr.outvars]


def step(
    eqn: JaxprEqn, labels: list[Provenance | None], repeats: int, dataflow: Dataflow
) -> list[Provenance | None]:
    """One equation: records what it does with labelled operands, gives its outputs' labels."""
    name = eqn.primitive.name
    nothing: list[Provenance | None] = [None] * len(eqn.outvars)
    if name == "scan":
        return _scan(eqn, labels, repeats, dataflow)
    if name == "while":
        return _while(eqn, labels, repeats, dataflow)
    if name == "cond":
        return _cond(eqn, labels, repeats, dataflow)
    inner = called(eqn)
    if inner is not None:
        return _walk(inner.jaxpr, labels, repeats, dataflow)
    label = moved(eqn, labels)
    if label is not None:
        return [label] * len(eqn.outvars)
    if name == "optimization_barrier":
        return list(labels)
    use = product(eqn, labels, repeats) or look_up(eqn, labels, repeats)
    if use is not None:
        dataflow.uses.append(use)
        return nothing
    dataflow.reads += [Read(label.leaf, name) for label in labels if label is not None]
    return nothing


def called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr of an equation that does nothing but call it: jit, remat, custom_jvp and so on."""
    if eqn.primitive.name in ("scan", "while", "cond", "shard_map"):
        return None
    names = [n for n in ("jaxpr", "call_jaxpr", "fun_jaxpr") if n in eqn.params]
    if len(names) != 1:
        return None
    inner = eqn.params[names[0]]
    if isinstance(inner, Jaxpr):
        inner = ClosedJaxpr(inner, ())
    if not isinstance(inner, ClosedJaxpr) or len(inner.jaxpr.invars) != len(eqn.invars):
        return None
    return inner if len(inner.jaxpr.outvars) == len(eqn.outvars) else None


def _scan(
    eqn: JaxprEqn, labels: list[Provenance | None], repeats: int, dataflow: Dataflow
) -> list[Provenance | None]:
    consts, carried = param(eqn, "num_consts"), param(eqn, "num_carry")
    length, body = param(eqn, "length"), param(eqn, "jaxpr").jaxpr
    sliced = sliced_by_scan(labels[consts + carried :], length)

    def walk(carry: Sequence[Provenance | None], into: Dataflow) -> list[Provenance | None]:
        inside = [*labels[:consts], *carry, *sliced]
        return _walk(body, inside, repeats * length, into)[:carried]

    carry, inner = settled(labels[consts : consts + carried], walk)
    merge(dataflow, inner)
    _lost(labels[consts : consts + carried], carry, "scan", dataflow)
    return [*carry, *(None for _ in eqn.outvars[carried:])]


def _while(
    eqn: JaxprEqn, labels: list[Provenance | None], repeats: int, dataflow: Dataflow
) -> list[Provenance | None]:
    tests, consts = param(eqn, "cond_nconsts"), param(eqn, "body_nconsts")
    test, body = param(eqn, "cond_jaxpr").jaxpr, param(eqn, "body_jaxpr").jaxpr
    held = labels[tests : tests + consts]

    def walk(carry: Sequence[Provenance | None], into: Dataflow) -> list[Provenance | None]:
        _walk(test, [*labels[:tests], *carry], repeats, into)
        return _walk(body, [*held, *carry], repeats, into)

    carry, inner = settled(labels[tests + consts :], walk)
    merge(dataflow, inner)
    _lost(labels[tests + consts :], carry, "while", dataflow)
    return carry


def _cond(
    eqn: JaxprEqn, labels: list[Provenance | None], repeats: int, dataflow: Dataflow
) -> list[Provenance | None]:
    """Of several branches each leaf counts where it costs most."""
    branches: list[Dataflow] = []
    outs: list[list[Provenance | None]] = []
    for branch in param(eqn, "branches"):
        inner = Dataflow()
        outs.append(_walk(branch.jaxpr, labels[1:], repeats, inner))
        branches.append(inner)
    for leaf in dict.fromkeys(use.leaf for inner in branches for use in inner.uses):
        dataflow.uses += max(
            (inner.of(leaf) for inner in branches), key=lambda uses: sum(u.macs for u in uses)
        )
    for inner in branches:
        dataflow.reads += inner.reads
    agreed = [column[0] if len(set(column)) == 1 else None for column in zip(*outs, strict=True)]
    for column, label in zip(zip(*outs, strict=True), agreed, strict=True):
        _lost(column, [label] * len(column), "cond", dataflow)
    return agreed


def settled(
    carry: Sequence[Provenance | None],
    walk: Callable[[Sequence[Provenance | None], Dataflow], Sequence[Provenance | None]],
) -> tuple[list[Provenance | None], Dataflow]:
    """The labels that a loop carries unchanged, and what its body does with them."""
    held = list(carry)
    while True:
        inner = Dataflow()
        after = walk(held, inner)
        kept = [
            before if before == later else None for before, later in zip(held, after, strict=True)
        ]
        if kept == held:
            return kept, inner
        held = kept


def merge(dataflow: Dataflow, inner: Dataflow) -> None:
    """Adds what was found inside."""
    dataflow.uses += inner.uses
    dataflow.reads += inner.reads


def _lost(
    before: Sequence[Provenance | None],
    after: Sequence[Provenance | None],
    where: str,
    dataflow: Dataflow,
) -> None:
    dataflow.reads += [
        Read(b.leaf, where) for b, a in zip(before, after, strict=True) if b is not None and a != b
    ]


def bind(eqn: JaxprEqn, arguments: Sequence[Any]) -> list[Any]:
    """The outputs of an equation for these operands."""
    primitive: Any = eqn.primitive
    bound = primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # jax before 0.10
    with eqn.ctx.manager:
        outputs = primitive.bind(*functions, *arguments, **params)
    return list(outputs) if primitive.multiple_results else [outputs]


def leaves_of(tree: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of a tree of dicts and the like, each with its keys joined by dots."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield ".".join(_key(entry) for entry in path), leaf


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
